"""Why no engine was made: told by the child as JSON values, raised by the parent as an error a person can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import MissingError, PipelineError, StageError
from pipeline.machine.tensorrt_flavours import Flavour

Kind = Literal["missing", "gpu", "unsupported", "parse", "interface", "profile", "build", "disk"]

_NO_ENGINE = "engine: the builder made no engine"
# What the builder's last words mean, and what to do about it; the first row that they match.
_BUILD_FAILURES = (
    (
        r"out ?of ?memory|bad_alloc|MEM_ALLOC_FAILED|FAILED_ALLOCATION",
        "engine: out of memory",
        "smaller profiles, `workspace_bytes`, or more memory",
    ),
    (
        r"is not supported|HW-specific datatypes|not supported on this platform",
        "engine: unsupported by this flavour ({flavour})",
        "another `precision`, or other `gpus`",
    ),
    # the first of TensorRT-RTX 1.7, the second of TensorRT 10
    (r"within workspace limit|insufficient workspace", _NO_ENGINE, "raise `workspace_bytes`, or leave it out"),
    ("", _NO_ENGINE, "the log's end tells more"),
)
# What to do about a node the parser refuses, by its error code.
_NODE_HINTS = {
    "UNSUPPORTED_NODE_DATATYPE": "it cannot compute in that type: keep the node in fp32 (keep_fp32), or change the "
    "model there; a quantised bias (Int32) must stay float",
    "UNSUPPORTED_NODE_DYNAMIC": "give the dimension it needs a fixed size under `inputs`",
    "UNSUPPORTED_NODE_SHAPE": "give the dimension it needs a fixed size under `inputs`",
    "UNSUPPORTED_NODE_ATTR": "export with another `opset`, or change the model there",
}
_NODE_HINT = "write the model without this operator, or serve the variant as `format: onnx`"


class FailureError(Exception):
    """Raised in the child: no engine can be made, and why.

    Args:
        kind: what sort of reason; decides the error the parent raises.
        lines: the reason.
        details: JSON values: ``nodes`` for ``parse``, ``errno`` for ``disk``.
    """

    def __init__(self, kind: Kind, *lines: str, **details: Any) -> None:
        super().__init__(kind, *lines)
        self.values: dict[str, Any] = {"kind": kind, "lines": list(lines), **details}


class UnavailableError(MissingError):
    """A flavour cannot be used on this machine: what ``when_unavailable: skip`` allows; a full disk is another lack."""


def error(values: Mapping[str, Any], flavour: Flavour, log_path: Path) -> PipelineError:
    """The error for the ``values`` of a ``FailureError`` that a child told."""
    lines, log = "\n".join(values["lines"]), str(log_path)
    match values["kind"]:
        case "missing":
            return absent(flavour, lines, log=log)
        case "gpu":
            hint = "build on a machine with that GPU and its driver, or name this machine's under `engine.gpus`"
            return _unusable(flavour, lines, hint, log)
        case "unsupported":
            return StageError(f"engine: {lines}: unsupported by this flavour ({flavour.name})", log=log)
        case "parse":
            return _parse_error(values["nodes"], lines, log)
        case "interface":
            what = "engine: the graph's inputs and outputs are not the model's"
            hint = "correct `inputs` and `outputs` in the YAML, or the file under `source`"
            return StageError(what, found=lines, hint=hint, log=log)
        case "profile":
            hint = "correct `engine.profiles`, or the shapes under `inputs`"
            return StageError(_NO_ENGINE, found=lines, hint=hint, log=log)
        case "disk":
            raise OSError(values["errno"], lines)
    found = (row for row in _BUILD_FAILURES if re.search(row[0], lines, re.IGNORECASE))
    _, what, hint = next(found)
    return StageError(what.format(flavour=flavour.name), found=lines, hint=hint, log=log)


def absent(flavour: Flavour, found: str, *, log: str = "") -> UnavailableError:
    """The error for a flavour that is not there, with what to type."""
    gpu = ", on a machine with an NVIDIA GPU and its driver" if flavour.needs_gpu else ""
    return _unusable(flavour, found, f"{flavour.install}{gpu}", log)


def _unusable(flavour: Flavour, found: str, hint: str, log: str) -> UnavailableError:
    what = f"engine: the flavour {flavour.name} cannot be used here"
    return UnavailableError(what, found=found, hint=hint, log=log)


def died(status: int, tail: str, log_path: Path) -> StageError:
    """The error for a child that told nothing.

    Args:
        status: its exit status; negative for the signal that ended it.
        tail: the end of its output.
        log_path: the build's log.
    """
    if status == -9:
        return StageError(
            "engine: the build was killed",
            found="the process got SIGKILL, as when the machine is out of memory",
            hint="free memory, or give the machine or the container more",
            log=str(log_path),
        )
    what = "engine: the build died"
    found = f"{f'signal {-status}' if status < 0 else f'exit status {status}'}: {tail}"
    return StageError(what, found=found, hint="the log's end tells more", log=str(log_path))


def _parse_error(nodes: Sequence[Mapping[str, str]], lines: str, log: str) -> StageError:
    if not nodes:
        return StageError("engine: the ONNX file cannot be read", found=lines, hint="export it again", log=log)
    told = [f"{node['name'] or 'a node without a name'} ({node['op'] or '?'}): {node['reason']}" for node in nodes]
    hints = dict.fromkeys(f"{node['op'] or '?'}: {_NODE_HINTS.get(node['code'], _NODE_HINT)}" for node in nodes)
    what = f"engine: the parser refused {len(nodes)} node{'s' * (len(nodes) > 1)}"
    return StageError(what, found="\n".join(told), hint="\n".join(hints), log=log)
