"""Source model -> TorchScript file whose forward has the YAML's names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from pipeline.base.errors import StageError
from pipeline.base.values import GoldenSamples, Signature, SourceModel
from pipeline.capture import examples, tracing
from pipeline.capture.examples import Examples
from pipeline.capture.quiet import no_deprecation_warnings
from pipeline.capture.script import Method, build, is_argument
from pipeline.capture.torch_module import NamedModule
from pipeline.formats.torchscript import archive
from pipeline.formats.torchscript.runtime import TorchScriptRuntime

FILE = "model.pt"


def export(
    source: SourceModel, *, signature: Signature, golden: GoldenSamples, method: Method, out_dir: Path
) -> dict[str, Any]:
    """Write ``out_dir/model.pt`` and run it against the source model.

    Args:
        source: a torch module or a TorchScript file.
        signature: forward's argument names, and the order of the returned tuple.
        golden: what to trace on; see examples.choose.
        method: ``auto`` traces, and scripts what a trace would freeze.
        out_dir: existing directory; equal models give equal bytes in any directory and process.

    Returns:
        ``{"file": "model.pt", "notes": [...], "properties": {"method": "trace"}}``.

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
    with no_deprecation_warnings():
        torch.jit.save(built.module, str(raw))
    archive.canonicalise(raw, out_dir / FILE)
    raw.unlink()
    _verify(out_dir / FILE, signature, pair)
    return {"file": FILE, "notes": [*pair.notes, *built.notes], "properties": {"method": built.method}}


def _check_names(signature: Signature) -> None:
    for spec in signature.inputs:
        if not is_argument(spec.name):
            raise StageError(
                f"export: {spec.name!r} cannot be the name of a TorchScript argument",
                hint=f"rename the input, for example to {re.sub(r'[^0-9A-Za-z_]', '_', f'input_{spec.name}')}",
            )


def _verify(file: Path, signature: Signature, pair: Examples) -> None:
    """Open the written file and compare its answers with the source model's on both examples.

    Raises:
        StageError: they differ.
    """
    if wrong := tracing.unlike(TorchScriptRuntime(file, signature), signature, pair):
        _, reason = wrong
        raise StageError(
            "export: the TorchScript file does not answer as the model does",
            found=reason,
            hint="try the other `method`",
        )
