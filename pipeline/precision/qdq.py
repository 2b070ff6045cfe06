"""The graph before and after quantisation: what a quantiser can take, and what a consumer of Q/DQ does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.base.errors import StageError, listed
from pipeline.formats.onnx import graph

LAYERS = ("Conv", "Gemm", "MatMul")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_MIN_OPSET = 13  # the first in which DequantizeLinear takes one scale per channel
_COPY = "/fp32"  # graph.finish leaves no slash in a name


def prepare(model: onnx.ModelProto, keep_ops: Sequence[str], keep_nodes: Collection[str]) -> None:
    """Make a graph that onnxruntime.quantization can take, in place: constants as initializers, a name on every node.

    Raises:
        StageError: its opset is too old, it has nothing left to quantise, or ``keep_nodes`` names no node of it.
    """
    if graph.opset(model) < _MIN_OPSET:
        raise StageError(
            "int8: the graph's opset has no scales per channel",
            found=f"opset {graph.opset(model)}, expected {_MIN_OPSET} or later",
            hint="export with a later `opset`",
        )
    graph.name_nodes(model)
    proto = model.graph
    nodes = list(proto.node)
    del proto.node[:]
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            proto.initializer.add().CopyFrom(node.attribute[0].t)
            proto.initializer[-1].name = node.output[0]
        else:
            proto.node.append(node)
    if unknown := sorted(set(keep_nodes) - {node.name for node in proto.node}):
        what = "int8: no node has a name that is to stay fp32"
        raise StageError(what, found=listed(unknown), hint="names are those of the exported graph")
    candidates = [node for node in proto.node if node.op_type in LAYERS and node.op_type not in keep_ops]
    if all(node.name in keep_nodes for node in candidates):
        raise _nothing(model)


def separate(model: onnx.ModelProto, quantised: Collection[str]) -> None:
    """Give the nodes that stay fp32 a copy of the weights they share with these nodes, in place.

    onnxruntime.quantization rounds a tensor for all its readers.
    """
    read = {name for node in model.graph.node if node.name in quantised for name in node.input}
    shared = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in read}
    copied = set()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            if name in shared and node.name not in quantised:
                node.input[position] = name + _COPY
                copied.add(name)
    for name in sorted(copied):
        model.graph.initializer.add().CopyFrom(shared[name])
        model.graph.initializer[-1].name = name + _COPY


def read_unrounded(model: onnx.ModelProto, quantised: Collection[str]) -> None:
    """Let every other node, and the graph's outputs, have activations as they are, in place.

    onnxruntime.quantization rounds a tensor for all its readers. Not for graphs where it removed Relu: there it is the
    rounding that cuts off what is below zero.
    """
    nodes = model.graph.node
    rounded = {node.output[0]: node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    raw = {
        node.output[0]: rounded[node.input[0]]
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded
    }
    # The rounded tensor has the name of the graph's output where it is one: they change names.
    outputs = {item.name: raw.pop(item.name) for item in model.graph.output if item.name in raw}
    swapped = outputs | {name: output for output, name in outputs.items()}
    for node in nodes:
        node.input[:] = [swapped.get(name, name) for name in node.input]
        node.output[:] = [swapped.get(name, name) for name in node.output]
    raw |= {name: output for output, name in outputs.items()}
    for node in nodes:
        if node.op_type not in _QDQ and node.name not in quantised:
            node.input[:] = [raw.get(name, name) for name in node.input]


def _nothing(model: onnx.ModelProto) -> StageError:
    ops = Counter(node.op_type for node in model.graph.node)
    return StageError(
        "int8: no Conv, Gemm or MatMul of the graph could be quantised",
        found=", ".join(f"{count} {op}" for op, count in sorted(ops.items())) or "an empty graph",
        hint="keep fewer operators or nodes in fp32, or use another precision",
    )


def check(result: onnx.ModelProto, source: onnx.ModelProto, recipe: Literal["U8S8", "S8S8"]) -> int:
    """Hold a quantised graph against what its consumer takes; returns how many nodes ``layers`` counts.

    Args:
        result: the quantised graph.
        source: the fp32 graph it was made from.
        recipe: ``S8S8`` allows only zero points of 0 and no int32.

    Raises:
        StageError: other inputs or outputs, no such node, or scales or zero points that are not allowed.
    """
    if _interface(result) != _interface(source):
        raise StageError(
            "int8: quantisation changed the inputs or outputs",
            found=f"{_interface(result)}, expected {_interface(source)}",
        )
    values = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = result.graph.node
    faults = [fault for node in nodes if node.op_type in _QDQ for fault in _faults(node, values, recipe)]
    if faults:
        raise StageError(
            "int8: scales or zero points that the consumer does not take",
            found=listed(faults, between="\n"),
            hint="leave the nodes around these tensors in fp32: `keep_fp32: {nodes: […]}`",
        )
    found = layers(result)
    if not found:
        raise _nothing(source)
    return found


def layers(model: onnx.ModelProto) -> int:
    """How many Conv, Gemm and MatMul nodes read nothing but dequantised values, their bias aside."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return sum(node.op_type in LAYERS and dequantised.issuperset(node.input[:2]) for node in model.graph.node)


def _faults(node: onnx.NodeProto, values: Mapping[str, onnx.TensorProto], recipe: str) -> Iterator[str]:
    scale = values.get(node.input[1])
    numbers = numpy_helper.to_array(scale) if scale is not None else np.array(np.nan)
    if not (np.isfinite(numbers).all() and (numbers > 0).all()):
        yield f"{node.name}: scale {numbers.min()} to {numbers.max()}; expected constants over 0"
    zero = values.get(node.input[2]) if len(node.input) > 2 else None
    if recipe == "S8S8" and zero is not None:
        if zero.data_type != TensorProto.INT8:
            yield f"{node.name}: type {TensorProto.DataType.Name(zero.data_type).lower()}; expected int8"
        if numpy_helper.to_array(zero).any():
            yield f"{node.name}: zero point {numpy_helper.to_array(zero).max()}; expected 0"


def _interface(model: onnx.ModelProto) -> list[tuple[str, int]]:
    return [(item.name, item.type.tensor_type.elem_type) for item in (*model.graph.input, *model.graph.output)]
