"""Why no engine was made: told by the child as JSON values, raised by the parent as an error a person can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.base.errors import MissingError, PipelineError, StageError
from pipeline.machine.tensorrt_flavours import Flavour

Kind = Literal["missing", "gpu", "unsupported", "parse", "interface", "profile", "build", "disk"]

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|bad_alloc|MEM_ALLOC_FAILED|FAILED_ALLOCATION", re.IGNORECASE)
# "within workspace limit" of TensorRT-RTX 1.7, "insufficient workspace" of TensorRT 10
_WORKSPACE = re.compile(r"within workspace limit|insufficient workspace", re.IGNORECASE)
_UNSUPPORTED = re.compile(r"is not supported|HW-specific datatypes|not supported on this platform", re.IGNORECASE)

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
        details: JSON values: ``lines`` for all kinds, ``nodes`` for ``parse``, ``errno`` for ``disk``.
    """

    def __init__(self, kind: Kind, *lines: str, **details: Any) -> None:
        super().__init__(kind, *lines)
        self.values: dict[str, Any] = {"kind": kind, "lines": list(lines), **details}


class UnavailableError(MissingError):
    """A flavour cannot be used on this machine: what ``when_unavailable: skip`` allows; a full disk is another lack."""


def error(values: Mapping[str, Any], flavour: Flavour, log_path: Path) -> PipelineError:
    """The error for what a child told.

    Args:
        values: of a ``FailureError``.
        flavour: what was to build.
        log_path: the build's log.
    """
    lines, log = "\n".join(values["lines"]), str(log_path)
    match values["kind"]:
        case "missing":
            return absent(flavour, lines, log=log)
        case "gpu":
            return _without_gpu(flavour, lines, log)
        case "unsupported":
            return StageError(f"engine: {lines}: unsupported by this flavour ({flavour.name})", log=log)
        case "parse":
            return _parse_error(values["nodes"], lines, log)
        case "interface":
            return StageError(
                "engine: the graph's inputs and outputs are not the model's",
                found=lines,
                hint="correct `inputs` and `outputs` in the YAML, or the file under `source`",
                log=log,
            )
        case "profile":
            return StageError(
                "engine: the builder made no engine",
                found=lines,
                hint="correct `engine.profiles`, or the shapes under `inputs`",
                log=log,
            )
        case "disk":
            raise OSError(values["errno"], lines)
    return _build_error(lines, flavour, log)


def absent(flavour: Flavour, found: str, *, log: str = "") -> UnavailableError:
    """The error for a flavour that is not there, with what to type."""
    gpu = ", on a machine with an NVIDIA GPU and its driver" if flavour.needs_gpu else ""
    return UnavailableError(
        f"engine: the flavour {flavour.name} cannot be used here", found=found, hint=f"{flavour.install}{gpu}", log=log
    )


def _without_gpu(flavour: Flavour, found: str, log: str) -> UnavailableError:
    """The error for a flavour that is there, without a GPU to build on."""
    return UnavailableError(
        f"engine: the flavour {flavour.name} cannot be used here",
        found=found,
        hint="build on a machine with that GPU and its driver, or name this machine's under `engine.gpus`",
        log=log,
    )


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
    return StageError(
        "engine: the build died",
        found=f"{f'signal {-status}' if status < 0 else f'exit status {status}'}: {tail}",
        hint="the log's end tells more",
        log=str(log_path),
    )


def _parse_error(nodes: Sequence[Mapping[str, str]], lines: str, log: str) -> StageError:
    if not nodes:
        return StageError("engine: the ONNX file cannot be read", found=lines, hint="export it again", log=log)
    told = [f"{node['name'] or 'a node without a name'} ({node['op'] or '?'}): {node['reason']}" for node in nodes]
    hints = dict.fromkeys(f"{node['op'] or '?'}: {_NODE_HINTS.get(node['code'], _NODE_HINT)}" for node in nodes)
    return StageError(
        f"engine: the parser refused {len(nodes)} node{'s' * (len(nodes) > 1)}",
        found="\n".join(told),
        hint="\n".join(hints),
        log=log,
    )


def _build_error(lines: str, flavour: Flavour, log: str) -> StageError:
    if _OUT_OF_MEMORY.search(lines):
        return StageError(
            "engine: out of memory", found=lines, hint="smaller profiles, `workspace_bytes`, or more memory", log=log
        )
    if _UNSUPPORTED.search(lines):
        return StageError(
            f"engine: unsupported by this flavour ({flavour.name})",
            found=lines,
            hint="another `precision`, or other `gpus`",
            log=log,
        )
    hint = "raise `workspace_bytes`, or leave it out" if _WORKSPACE.search(lines) else "the log's end tells more"
    return StageError("engine: the builder made no engine", found=lines, hint=hint, log=log)
