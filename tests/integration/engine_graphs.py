"""Small nets as ONNX files, and real TensorRT-RTX engines of them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import PipelineError
from pipeline.base.step import Outcome
from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.tensorrt.build import build
from pipeline.formats.tensorrt.profiles import resolve
from pipeline.formats.tensorrt.spec import EngineSpec

CHANNELS = 8
IMAGES = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 3, 16, 16)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 4)),),
    batch="N",
)
TOKENS = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", "L", 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", "L", 4)),),
    batch="N",
)
NARROW = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def saved(
    nodes: list[Any], weights: Mapping[str, Any], folder: Path, signature: Signature = IMAGES, **changes: Any
) -> Path:
    """A checked model with the signature's inputs and outputs, the latter changed where asked."""

    def infos(specs: Any) -> list[Any]:
        kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(item.name, kinds[item.dtype], item.shape) for item in specs]

    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    outputs = [replace(item, **changes) for item in signature.outputs]
    made = helper.make_graph(nodes, "g", infos(signature.inputs), infos(outputs), initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def image_net(folder: Path, precision: str = "fp32", *, in_float: str = "") -> Path:
    """conv1 - relu1 - conv2 - pool - fc; in fp16 and bf16 between casts, in int8 with Q/DQ before every weighted node.

    Args:
        folder: for the file.
        precision: of the weights and the arithmetic.
        in_float: ``conv2``: it stays in float, ``conv2 pool``: both do.
    """
    random = np.random.default_rng(0)
    shapes = {"w1": (CHANNELS, 3, 3, 3), "w2": (CHANNELS, CHANNELS, 3, 3), "w3": (CHANNELS, 4)}
    weights: dict[str, Any] = {name: random.normal(size=shape, scale=0.2) for name, shape in shapes.items()}
    kind, dtype = NARROW.get(precision, (TensorProto.FLOAT, np.float32))
    weights = {name: value.astype(dtype) for name, value in weights.items()}
    nodes: list[Any] = []

    def node(op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def operand(tensor: str, *, plain: bool = False) -> str:
        if precision != "int8" or plain:
            return tensor
        weights[f"{tensor}_s"], weights[f"{tensor}_z"] = np.float32(0.02), np.int8(0)
        scale = [f"{tensor}_s", f"{tensor}_z"]
        return node(
            "DequantizeLinear", [node("QuantizeLinear", [tensor, *scale], f"{tensor}_q"), *scale], f"{tensor}_dq"
        )

    def conv(tensor: str, weight: str, name: str) -> str:
        plain = name in in_float
        return node("Conv", [operand(tensor, plain=plain), operand(weight, plain=plain)], name, pads=[1] * 4)

    def cast(tensor: str, name: str, to: int) -> str:
        return node("Cast", [tensor], name, to=to) if precision in NARROW else tensor

    tensor = node("Relu", [conv(cast("x", "cast_in", kind), "w1", "conv1")], "relu1")
    if in_float:
        weights["w2"] = weights["w2"].astype(np.float32)
        tensor = cast(tensor, "widened", TensorProto.FLOAT)
    tensor = conv(tensor, "w2", "conv2")
    tensor = cast(tensor, "narrowed", kind) if in_float == "conv2" else tensor
    tensor = node("GlobalAveragePool", [tensor], "pool")
    tensor = cast(tensor, "narrowed", kind) if in_float == "conv2 pool" else tensor
    tensor = node("Flatten", [tensor], "flat")
    tensor = node("MatMul", [operand(tensor), operand("w3")], "fc")
    cast(tensor, "cast_out", TensorProto.FLOAT)
    nodes[-1].output[0] = "y"
    return saved(nodes, weights, folder)


def engine_spec(precision: Any = "fp32", signature: Signature = IMAGES, given: Any = (), **changes: Any) -> EngineSpec:
    values = {
        "flavour": "tensorrt_rtx",
        "precision": precision,
        "signature": signature,
        "max_batch_size": 8,
        "profiles": resolve(signature, given, 8),
        "gpus": ("sm_80",),
    }
    return EngineSpec(**{**values, **changes})


def built(source: Path, spec: EngineSpec, **options: Any) -> Outcome:
    out = source.parent / "out"
    out.mkdir(exist_ok=True)
    values: dict[str, Any] = {"timeout_s": 120, "progress": lambda text, share: None, **options}
    return build(source, spec, out, timing_cache=None, log_path=source.parent / "engine.log", **values)


def refused(source: Path, spec: EngineSpec, **options: Any) -> PipelineError:
    """The error of a build that fails; and nothing is left of it."""
    with pytest.raises(PipelineError) as caught:
        built(source, spec, **options)
    assert list((source.parent / "out").iterdir()) == []
    return caught.value
