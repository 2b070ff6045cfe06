"""TensorRT's engines, of both flavours."""

from __future__ import annotations

from pipeline.base import triton_facts
from pipeline.formats.format import Format

FORMAT = Format(
    kind="tensorrt",
    backends={flavour: triton_facts.BACKENDS[flavour] for flavour in triton_facts.ENGINE_BACKENDS},
    exports={},
    built_from="onnx",
    engine=True,
    consumer="tensorrt",
)
