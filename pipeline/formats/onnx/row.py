"""ONNX, as Triton's onnxruntime backend serves it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.base import triton_facts
from pipeline.formats.format import Export, Format
from pipeline.machine.target import Limits
from pipeline.schema.model import TF2ONNX_MAX_OPSET
from pipeline.schema.variants import Variant

DEFAULT_OPSET = 20  # the newest that every exporter and runtime in use handles; see docs/decisions.md


def _options(making: Variant, target: Limits) -> dict[str, Any]:
    common = _common(making, target, DEFAULT_OPSET)
    return {**common, "exporter": making.exporter or "auto", "max_opset": target.max_opset}


def _tf2onnx_options(making: Variant, target: Limits) -> dict[str, Any]:
    return {**_common(making, target, TF2ONNX_MAX_OPSET), "exporter": "tf2onnx"}


def _common(making: Variant, target: Limits, opset: int) -> dict[str, Any]:
    return {
        "opset": making.opset or min(opset, target.max_opset),
        "simplify": making.simplify is not False,
        "max_ir_version": target.max_ir_version,
    }


def _tf2onnx_problems(making: Variant) -> Iterator[tuple[str, str]]:
    if making.exporter is not None:
        yield "exporter", "chooses among torch's exporters; a TensorFlow model goes through tf2onnx"
    if (making.opset or 0) > TF2ONNX_MAX_OPSET:
        yield "opset", f"expected at most {TF2ONNX_MAX_OPSET}, the newest that tf2onnx writes; found {making.opset}"


_OF_TORCH = Export(
    function="pipeline.formats.onnx.export:make",
    tools=("torch", "onnx", "onnxscript", "onnxslim", "onnxruntime"),
    options=_options,
)
_OF_TENSORFLOW = Export(
    function="pipeline.formats.tf2onnx:make",
    tools=("keras", "tensorflow", "tensorflow-cpu", "tf2onnx", "onnx", "onnxslim"),
    options=_tf2onnx_options,
    problems=_tf2onnx_problems,
)
FORMAT = Format(
    kind="onnx",
    backends={"onnx": triton_facts.BACKENDS["onnxruntime"]},
    exports={
        "torch": _OF_TORCH,
        "torchscript": _OF_TORCH,
        "onnx": _OF_TORCH,  # copied as it is given
        "keras": _OF_TENSORFLOW,
        "saved_model": _OF_TENSORFLOW,
    },
    consumer="onnxruntime",
    judge="pipeline.formats.onnx.judging:judge",
)
