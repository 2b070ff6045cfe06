"""A C++ program around a TorchScript file, which serves itself."""

from __future__ import annotations

from pipeline.formats.format import Format

FORMAT = Format(
    kind="torchscript",
    backends={},
    exports={},
    built_from="torchscript",
    misfit="a libtorch program is made of a torchscript variant; `{parent}` is {format}",
    words="C++ program",
)
