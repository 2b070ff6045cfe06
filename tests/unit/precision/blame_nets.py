"""Small nets of which some nodes do not bear lower precision, and what reduces them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel

from pipeline.base.values import Array, GoldenSamples, Sample

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def golden(*shape: int, count: int = 24) -> GoldenSamples:
    random = np.random.default_rng(3)
    rows = ({"x": random.normal(size=(1, *shape)).astype(np.float32)} for _ in range(count))
    return GoldenSamples(samples=tuple(Sample(inputs=row, outputs={}) for row in rows), batched=True, sha256="")


def write(path: Path, nodes: list[onnx.NodeProto], shape: list[Any], **weights: Array) -> Path:
    """A model from x to y, both ``["N", *shape]``; nodes get their output's name."""
    for node in nodes:
        node.name = node.name or node.output[0]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), str(path))
    return path


def uneven_convs(path: Path) -> Path:
    """Four convolutions; ``b`` has one output channel 2000 times the others, which ``even`` divides out again."""
    random = np.random.default_rng(7)
    weights = {f"{name}.w": (random.normal(size=(12, 12, 3, 3)) / 10).astype(np.float32) for name in "abcd"}
    weights["b.w"][2] *= 2000
    nodes = []
    last = "x"
    for name in "abcd":
        out = "y" if name == "d" else name
        nodes.append(helper.make_node("Conv", [last, f"{name}.w"], [out], name=name, pads=[1, 1, 1, 1]))
        last = out
        if name == "b":
            nodes.append(helper.make_node("Mul", ["b", "scale"], ["even"]))
            last = "even"
    scale = np.ones((1, 12, 1, 1), np.float32)
    scale[0, 2] = 1 / 2000
    return write(path, nodes, [12, 6, 6], scale=scale, **weights)


def cancellation(path: Path) -> Path:
    """y = sqrt(((|x| + 4096) - 4096) / 2): in half precision little or nothing of x is left in the sum."""
    names = {"Abs": ["x"], "Add": ["abs", "c"], "Sub": ["add", "c"], "Mul": ["sub", "half"], "Sqrt": ["mul"]}
    nodes = [
        helper.make_node(op, inputs, ["y" if op == "Sqrt" else op.lower()], name=op.lower())
        for op, inputs in names.items()
    ]
    return write(path, nodes, [5], c=np.float32(4096), half=np.float32(0.5))


class _Reader(CalibrationDataReader):
    def __init__(self, samples: GoldenSamples) -> None:
        self._inputs = iter([dict(sample.inputs) for sample in samples.samples])

    def get_next(self) -> Any:
        return next(self._inputs, None)


def to_int8(
    source: Path, folder: Path, keep: Collection[str], samples: GoldenSamples, *, outputs: bool = False
) -> Path:
    """Per-tensor symmetric Q/DQ before convolutions, and after them where ``outputs``."""
    file = folder / "model.onnx"
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        str(source), str(file), _Reader(samples), quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8, op_types_to_quantize=["Conv"], nodes_to_exclude=sorted(keep),
        extra_options={**options, **({} if outputs else {"OpTypesToExcludeOutputQuantization": ["Conv"]})},
    )  # fmt: skip
    return file


def to_half(source: Path, folder: Path, keep: Collection[str], kind: int = TensorProto.FLOAT16) -> Path:
    """float16, with float32 from one kept node to the next; for bfloat16 the types are exchanged afterwards."""
    model = onnx.load(str(source))
    made = OnnxModel(float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(keep)))
    made.remove_cascaded_cast_nodes()
    made.topological_sort()
    if kind == TensorProto.BFLOAT16:
        for tensor in made.model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT16:
                values = numpy_helper.to_array(tensor)
                tensor.CopyFrom(helper.make_tensor(tensor.name, kind, values.shape, values.ravel().astype(np.float32)))
        for node in made.model.graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = kind
    del made.model.graph.value_info[:]
    onnx.save(made.model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def simulated(reduced: Path, folder: Path) -> Path:
    """A float32 graph that rounds every tensor that is half precision in ``reduced``."""
    model = onnx.load(str(reduced))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.output)}
    nodes = []
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
        nodes.append(node)
        for position, name in enumerate(node.output):
            if types[name] in HALF:
                node.output[position] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.half"], to=types[name]))
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    for tensor in model.graph.initializer:
        if tensor.data_type in HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.save(model, str(folder / "simulated.onnx"))
    return folder / "simulated.onnx"


def as_is(reduced: Path, _: Path) -> Path:
    return reduced


def answers(path: Path, samples: GoldenSamples) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["y"], dict(sample.inputs))[0] for sample in samples.samples])


def sqnr_db(reference: Array, actual: Array) -> float:
    noise = reference.astype(np.float64) - actual
    return float(10 * np.log10((reference.astype(np.float64) ** 2).sum() / (noise**2).sum()))
