"""int8, as precision/table.py asks for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pipeline.base.values import GoldenSamples, Progress, Runtime, Signature
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.precision import int8


def make(
    source: Path,
    out_dir: Path,
    given: Mapping[str, Any],
    *,
    keep_nodes: Collection[str],
    measured: GoldenSamples | None,
    progress: Progress,
) -> Mapping[str, Any]:
    """See ``int8.quantize``."""
    assert measured is not None
    return int8.quantize(
        source,
        measured,
        out_dir,
        consumer=given["consumer"],
        reduce_range=given["reduce_range"],
        keep_ops=tuple(given["keep_ops"]),
        keep_nodes=keep_nodes,
        progress=progress,
        **given["calibration"],
    )


def runnable(reduced: Path, out_dir: Path) -> Path:
    """ONNX Runtime runs Q/DQ."""
    return reduced


def opened(path: Path, signature: Signature, consumer: str) -> Runtime:
    """As it will be served or, where it is bound for TensorRT, with sums that do not saturate.

    Raises:
        StageError: it does not load.
    """
    return OnnxRuntime(path, signature) if consumer == "onnxruntime" else OnnxRuntime(path, signature, float_qdq=True)
