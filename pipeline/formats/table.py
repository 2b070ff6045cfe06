"""The formats: what a variant's file can be. A new one is a folder beside this file, and a row here."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.base.triton_facts import Backend
from pipeline.formats.format import Format
from pipeline.formats.libtorch import row as libtorch
from pipeline.formats.onnx import row as onnx
from pipeline.formats.saved_model import row as saved_model
from pipeline.formats.tensorrt import row as tensorrt
from pipeline.formats.torchscript import row as torchscript

FORMATS: Mapping[str, Format] = {
    "saved_model": saved_model.FORMAT,
    "onnx": onnx.FORMAT,
    "torchscript": torchscript.FORMAT,
    "tensorrt": tensorrt.FORMAT,
    "libtorch": libtorch.FORMAT,
}
"""By the name in the YAML."""

BACKENDS: Mapping[str, Backend] = {kind: backend for row in FORMATS.values() for kind, backend in row.backends.items()}
"""What serves each kind of file."""


def of_source(kind: str) -> tuple[str, ...]:
    """The formats that a source of this kind can be made into."""
    return tuple(name for name, row in FORMATS.items() if kind in row.exports)
