"""Small fp32 graphs to quantise, and samples for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.step import Outcome
from pipeline.base.values import Array, GoldenSamples, Sample
from pipeline.formats.onnx import graph
from pipeline.precision import int8


def made(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    x: Sequence[int | str],
    y: Sequence[int | str],
    opset: int = 20,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    proto = helper.make_graph(list(nodes), "g", inputs, outputs, tensors)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def convnet(width: int = 6) -> onnx.ModelProto:
    """Two convolutions, the second in a residual block, pooling and a linear layer; channels differ in magnitude."""
    random = np.random.default_rng(0)
    scales = np.geomspace(0.1, 3, width, dtype=np.float32).reshape(width, 1, 1, 1)
    weights = {
        "w1": random.standard_normal((width, 3, 3, 3), np.float32) * scales,
        "b1": random.standard_normal(width, np.float32),
        "w2": random.standard_normal((width, width, 3, 3), np.float32) / width,
        "b2": random.standard_normal(width, np.float32),
        "w3": random.standard_normal((5, width), np.float32),
        "b3": random.standard_normal(5, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu_1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["sum"], name="residual"),
        helper.make_node("Relu", ["sum"], ["r2"], name="relu_2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], name="linear", transB=1),
    ]
    return made(nodes, weights, ["N", 3, 8, 8], ["N", 5])


def one_layer() -> onnx.ModelProto:
    """y = x @ 1, with x of any number of rows: the layer's range is the samples'."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")]
    return made(nodes, {"w": np.eye(4, dtype=np.float32)}, ["N", "L", 4], ["N", "L", 4])


def images(count: int, seed: int = 1) -> GoldenSamples:
    random = np.random.default_rng(seed)
    return golden([random.standard_normal((1, 3, 8, 8), np.float32) for _ in range(count)])


def golden(arrays: Sequence[Array], *, batched: bool = True) -> GoldenSamples:
    return GoldenSamples(
        samples=tuple(Sample(inputs={"x": array}, outputs={}) for array in arrays), batched=batched, sha256=""
    )


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "fp32.onnx"))
    return folder / "fp32.onnx"


def silent(message: str, fraction: float | None) -> None:
    assert fraction is None or 0 <= fraction <= 1, message


def quantize(
    folder: Path, model: onnx.ModelProto | None = None, samples: GoldenSamples | None = None, **options: Any
) -> tuple[onnx.ModelProto, Outcome]:
    folder.mkdir(exist_ok=True)
    source = saved(convnet() if model is None else model, folder)
    (folder / "out").mkdir()
    defaults = {"consumer": "tensorrt", "method": "minmax", "percentile": 99.99, "reduce_range": False}
    samples = images(8) if samples is None else samples
    outcome = int8.quantize(source, samples, folder / "out", **{"progress": silent, **defaults, **options})
    assert sorted(item.name for item in folder.iterdir()) == ["fp32.onnx", "out"]
    assert [item.name for item in (folder / "out").iterdir()] == [outcome.file]
    return graph.load(folder / "out" / outcome.file), outcome


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
