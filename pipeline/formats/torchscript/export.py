"""Source model -> TorchScript file whose forward has the YAML's names."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from pipeline.base import signatures
from pipeline.base.errors import StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import GoldenSamples, Progress, Signature, SourceModel
from pipeline.capture import examples, tracing
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.capture.script import Method, build, is_argument
from pipeline.capture.torch_module import NamedModule
from pipeline.data import samples
from pipeline.formats import opening
from pipeline.formats.torchscript import archive
from pipeline.formats.torchscript.runtime import TorchScriptRuntime

FILE = "model.pt"


def make(task: Task, progress: Progress) -> Outcome:
    """The step; see ``export``."""
    signature = signatures.from_json(task.arguments["signature"])
    return export(
        opening.opened(task, signature),
        signature=signature,
        golden=samples.golden(task),
        out_dir=task.out_dir,
        **task.arguments["options"],
    )


def export(
    source: SourceModel, *, signature: Signature, golden: GoldenSamples, method: Method, out_dir: Path
) -> Outcome:
    """Write ``out_dir/model.pt`` and run it against the source model.

    Equal models give equal bytes in any directory and process. Method ``auto`` traces, and scripts what a trace would
    freeze; the value ``method`` says which it was.

    Raises:
        StageError: the model cannot be traced or scripted, or is frozen (``where`` names the line).
    """
    if source.kind == "onnx":
        raise StageError(
            "export: an ONNX file cannot be made into TorchScript",
            hint="remove the torchscript variant, or start from the torch model",
        )
    _check_names(signature)
    named = NamedModule(source.module, signature).eval()
    pair = examples.choose(named, signature, golden)
    built = build(source, signature, pair, method=method)
    raw = out_dir / f".{FILE}"
    _save(built.module, raw)
    archive.canonicalise(raw, out_dir / FILE)
    raw.unlink()
    if wrong := tracing.unlike(TorchScriptRuntime(out_dir / FILE, signature), signature, pair):
        what = "export: the TorchScript file does not answer as the model does"
        raise StageError(what, found=wrong[1], hint="try the other `method`")
    return Outcome(file=FILE, notes=(*pair.notes, *built.notes), values={"method": built.method})


def _save(module: torch.jit.ScriptModule, path: Path) -> None:
    try:
        with no_deprecation_warnings():
            torch.jit.save(module, str(path))
    except RuntimeError as error:  # an autograd.Function of the user's, say, which a trace calls back
        raise StageError(
            "export: the model cannot be saved as TorchScript",
            found=str(error).strip(),
            hint="write that part with tensor operations",
        ) from error


def _check_names(signature: Signature) -> None:
    for spec in signature.inputs:
        if not is_argument(spec.name):
            raise StageError(
                f"export: {spec.name!r} cannot be the name of a TorchScript argument",
                hint=f"rename the input, for example to {re.sub(r'[^0-9A-Za-z_]', '_', f'input_{spec.name}')}",
            )
