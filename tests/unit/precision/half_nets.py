"""Small graphs built by hand, and ways to look at them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.step import Outcome
from pipeline.base.values import Array
from pipeline.formats.onnx import graph
from pipeline.precision import half

FLOAT, FP16, BF16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT64


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node named as its first output; ``-`` is an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, names, outputs.split(), name=f"n_{outputs.split()[0]}", **attributes)


def info(name: str, shape: Sequence[int | str] | None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], **tensors: Any) -> onnx.GraphProto:
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    return helper.make_graph(nodes, "g", inputs, outputs, constants)


def saved(folder: Path, made: onnx.GraphProto, opset: int = 20, **options: Any) -> Path:
    folder.mkdir(parents=True)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("other", 1)]
    graph.save(helper.make_model(made, opset_imports=imports, ir_version=9), folder, **options)
    return folder / graph.FILE


def run(model: onnx.ModelProto | Path, **feeds: Array) -> list[Array]:
    file = str(graph.file_of(model)) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, feeds)
    return outputs


def close(found: Array, expected: Array, tolerance: float) -> bool:
    """Within ``tolerance``, absolute and relative. Not numpy.testing: to import it starts a process."""
    return found.shape == expected.shape and np.allclose(found, expected, tolerance, tolerance)


def types(model: onnx.ModelProto | onnx.GraphProto) -> dict[str, int]:
    proto = model.graph if isinstance(model, onnx.ModelProto) else model
    found = {item.name: item.type.tensor_type.elem_type for item in (*proto.input, *proto.output, *proto.value_info)}
    return found | {tensor.name: tensor.data_type for tensor in proto.initializer}


def conv_net(folder: Path, *nodes: onnx.NodeProto) -> Path:
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "b": random.standard_normal(8).astype(np.float32),
        "v": random.standard_normal((5, 8)).astype(np.float32) / 3,
        "c": random.standard_normal(5).astype(np.float32),
    }
    layers = [
        node("Conv", "x w b", "conv", pads=[1, 1, 1, 1]),
        node("Relu", "conv", "relu"),
        node("MaxPool", "relu", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "pool", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat v c", "y", transB=1),
    ]
    return saved(folder, body(layers, [info("x", ["N", 3, 8, 8])], [info("y", ["N", 5])], **weights))


def attention(folder: Path, **options: Any) -> Path:
    """Ids and mask [N, L] to one attention head over embeddings, masked by float32's least number."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((16, 16)).astype(np.float32) / 4 for name in ("wq", "wk", "wv")}
    weights |= {"table": random.standard_normal((50, 16)).astype(np.float32)}
    weights |= {"gain": np.ones(16, np.float32), "shift": np.zeros(16, np.float32), "scale": np.float32(0.25)}
    weights |= {"head": random.standard_normal((16, 3)).astype(np.float32)}
    least = np.finfo(np.float32).min
    layers = [
        node("Gather", "table ids", "words"),
        *(node("MatMul", f"words w{letter}", letter) for letter in "qkv"),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "products"),
        node("Mul", "products scale", "scores"),
        node("Cast", "mask", "open", to=TensorProto.BOOL),
        node("Unsqueeze", "open one", "wide"),
        node("Where", "wide zero least", "bias"),
        node("Add", "scores bias", "masked"),
        node("Softmax", "masked", "shares"),
        node("MatMul", "shares v", "mixed"),
        node("Add", "mixed words", "sum"),
        node("LayerNormalization", "sum gain shift", "normal"),
        node("ReduceMean", "normal one", "mean", keepdims=0),
        node("MatMul", "mean head", "y"),
    ]
    constants = {"one": np.int64([1]), "zero": np.float32(0), "least": np.float32(least)}
    inputs = [info("ids", ["N", "L"], INT64), info("mask", ["N", "L"], INT64)]
    return saved(folder, body(layers, inputs, [info("y", ["N", 3])], **weights, **constants), **options)


def tokens(n: int = 3, length: int = 7) -> dict[str, Array]:
    random = np.random.default_rng(1)
    mask = (np.arange(length) < np.asarray([[length], [3], [0]][:n])).astype(np.int64)
    return {"ids": random.integers(0, 50, (n, length)), "mask": mask}


def loops(folder: Path) -> Path:
    """While sum(exp(state)) < 100: state = 2·state + shift·relu(x); then 10·state + relu(x) if sum(x) > 0, else 1.5.

    Both bodies have a constant ``k``, of their own types.
    """
    state, more = info("state", [2]), info("more", [], TensorProto.BOOL)
    step = body(
        [
            node("Mul", "state k", "doubled"),
            node("Mul", "shift r", "moved"),
            node("Add", "doubled moved", "next"),
            node("Exp", "next", "grown"),
            node("ReduceSum", "grown", "total", keepdims=0),
            node("Less", "total bound", "again"),
        ],
        [info("i", [], INT64), more, state],
        [info("again", [], TensorProto.BOOL), info("next", [2])],
        k=np.float32(2),
        bound=np.float32(100),
    )
    branches = {
        "then_branch": body(
            [node("Reshape", "state_end k", "flat"), node("Mul", "flat ten", "tenth"), node("Add", "tenth r", "t")],
            [],
            [info("t", [2])],
            k=np.int64([-1]),
            ten=np.float32(10),
        ),
        "else_branch": body([node("Constant", "", "e", value_floats=[1.5])], [], [info("e", [1])]),
    }
    layers = [
        node("Loop", "many yes x", "state_end", body=step),
        node("Relu", "x", "r"),
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "positive"),
        node("If", "positive", "y", **branches),
    ]
    layers[0], layers[1] = layers[1], layers[0]
    tensors = {"many": np.int64(9), "yes": np.bool_(True), "zero": np.float32(0), "shift": np.float32([0.5, 1])}
    return saved(folder, body(layers, [info("x", [2])], [info("y", None)], **tensors))


def convert(source: Path, precision: Any = "fp16", **options: Any) -> tuple[Outcome, onnx.ModelProto]:
    out = source.parent / precision
    out.mkdir()
    outcome = half.convert(source, out, precision=precision, **options)
    return outcome, graph.load(out / graph.FILE)


def bodies(holder: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [attribute.g for attribute in holder.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def computes_in(model: onnx.ModelProto, name: str) -> int:
    """The type of a node's first output."""
    return next(types(model)[item.output[0]] for item in model.graph.node if item.name == name)
