"""fp16 and bf16, as precision/table.py asks for them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.values import GoldenSamples, Progress, Runtime, Signature
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.precision import half, simulate


def make(
    source: Path,
    out_dir: Path,
    given: Mapping[str, Any],
    *,
    keep_nodes: Collection[str],
    measured: GoldenSamples | None,
    progress: Progress,
) -> Mapping[str, Any]:
    """See ``half.convert``."""
    return half.convert(
        source, out_dir, precision=given["precision"], keep_ops=tuple(given["keep_ops"]), keep_nodes=keep_nodes
    )


def runnable(reduced: Path, out_dir: Path) -> Path:
    """See ``simulate.half``."""
    return simulate.half(reduced, out_dir)


def opened(path: Path, signature: Signature, consumer: str) -> Runtime:
    """As it will be served or, where it is bound for TensorRT, with its rounding.

    Raises:
        StageError: it does not load.
    """
    if consumer == "onnxruntime":
        return OnnxRuntime(path, signature)
    with tempfile.TemporaryDirectory() as folder:
        return OnnxRuntime(simulate.half(path, Path(folder)), signature)
