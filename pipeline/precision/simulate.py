"""16-bit floats played in float32: for judging a graph with arithmetic that ONNX Runtime's CPU does not have.

Each 16-bit tensor becomes float32, and whatever makes one is followed by a cast to the 16-bit type and back. So values
are rounded where the engine rounds what it stores; sums within an operator are float32's, as on tensor cores. ONNX
Runtime 1.31.1 leaves such pairs of casts alone at every level of graph optimisation, and rounds to nearest even.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.formats.onnx import graph
from pipeline.precision import half_rules

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_EXACT = "/exact"  # after a tensor's name: its value before rounding; graph.finish leaves no slash in a name
_ROUNDED = "/rounded"  # and in the 16-bit type


def half(source: Path, out_dir: Path) -> Path:
    """Write ``out_dir/model.onnx``: a float32 graph that rounds wherever a float16 or bfloat16 graph does.

    Needed for bfloat16, which ONNX Runtime's CPU cannot run, and of use for float16, which it computes in float32
    without rounding where it has no float16 kernel. Names of nodes stay; bodies of Loop, If and Scan are included.

    Args:
        source: a graph written by ``half.convert``.
        out_dir: existing directory without a ``model.onnx``.

    Returns:
        Path of the file, or of the directory where the weights lie outside of it.

    Raises:
        StageError: an input or output of the graph itself is 16-bit, or the graph written is not valid ONNX.
    """
    model = graph.load(source)
    for item in (*model.graph.input, *model.graph.output):
        if item.type.tensor_type.elem_type in _HALF:
            raise StageError(
                "simulate: a graph whose own inputs or outputs are 16-bit floats cannot be played in float32",
                found=item.name,
                where=str(source),
                hint="declare that tensor as float32",
            )
    _play(model.graph)
    graph.save(model, out_dir)
    return out_dir / graph.FILE


def _play(proto: onnx.GraphProto) -> None:
    """Rewrite a graph or body in place."""
    halves = {
        item.name: item.type.tensor_type.elem_type
        for item in (*proto.input, *proto.output, *proto.value_info)
        if item.type.tensor_type.elem_type in _HALF
    }
    for item in (*proto.input, *proto.output):
        if item.name in halves:
            item.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in proto.initializer:
        if tensor.data_type in _HALF:
            exact = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(exact, tensor.name))
    nodes = []
    for node in proto.node:
        nodes.append(node)
        for body in half_rules.bodies(node):
            _play(body)
        for place, name in enumerate(node.output):
            if name in halves:
                nodes += _rounding(node, place, name, halves[name])
    del proto.node[:]
    proto.node.extend(nodes)


def _rounding(node: onnx.NodeProto, place: int, name: str, kind: int) -> list[onnx.NodeProto]:
    """Casts that round an output of a node; a node that is a cast itself does the first."""
    casts = []
    rounded = name + _ROUNDED
    if node.op_type == "Cast":
        node.output[place] = rounded
    else:
        node.output[place] = name + _EXACT
        casts.append(helper.make_node("Cast", [name + _EXACT], [rounded], name=rounded, to=kind))
    return [*casts, helper.make_node("Cast", [rounded], [name], name=f"{name}/float", to=TensorProto.FLOAT)]
