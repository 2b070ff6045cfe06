"""16-bit floats played in float32: for judging a graph with arithmetic that ONNX Runtime's CPU does not have.

Each 16-bit tensor becomes float32, and whatever makes one is followed by a cast to the 16-bit type and back. So values
are rounded where the engine rounds what it stores; sums within an operator are float32's, as on tensor cores. ONNX
Runtime 1.31.1 leaves such pairs of casts alone at every level of graph optimisation, and rounds to nearest even.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from pipeline.base.errors import StageError
from pipeline.formats.onnx import graph

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_EXACT = "/exact"  # after a tensor's name: its value before rounding; graph.finish leaves no slash in a name
_ROUNDED = "/rounded"  # and in the 16-bit type


def half(source: Path, out_dir: Path) -> Path:
    """Write ``out_dir/model.onnx``: a float32 graph that rounds wherever a float16 or bfloat16 graph does.

    Needed for bfloat16, which ONNX Runtime's CPU cannot run, and of use for float16, which it computes in float32
    without rounding where it has no float16 kernel. Names of nodes stay; bodies of Loop, If and Scan are included.

    Returns:
        Path of the file, or of the directory where the weights lie outside of it.

    Raises:
        StageError: an input or output of the graph itself is 16-bit, or the graph written is not valid ONNX.
    """
    model = ir.from_proto(graph.load(source))
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype in _HALF:
            what = "simulate: a graph whose own inputs or outputs are 16-bit floats cannot be played in float32"
            raise StageError(what, found=str(value.name), where=str(source), hint="declare that tensor as float32")
    for scope in (model.graph, *model.graph.subgraphs()):
        _play(scope)
    graph.save(ir.to_proto(model), out_dir)
    return out_dir / graph.FILE


def _play(scope: ir.Graph) -> None:
    """Rewrite a graph or body in place."""
    for value in (*scope.inputs, *scope.initializers.values()):
        if value.dtype in _HALF:
            value.dtype = ir.DataType.FLOAT
            if value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    for node in tuple(scope):
        for value in node.outputs:
            if value.dtype in _HALF:
                _round(node, value, value.dtype)


def _round(node: ir.Node, value: ir.Value, half: ir.DataType) -> None:
    """Add casts that round an output of a node; a node that is a cast itself does the first."""
    name = value.name
    played = ir.val(name, ir.DataType.FLOAT, value.shape)
    value.replace_all_uses_with(played, replace_graph_outputs=True)
    casts = []
    if node.op_type != "Cast":
        value.name, value.dtype, exact = f"{name}{_EXACT}", ir.DataType.FLOAT, value
        value = ir.val(None, half, value.shape)
        casts.append(ir.node("Cast", [exact], {"to": int(half)}, outputs=[value], name=f"{name}{_ROUNDED}"))
    value.name = f"{name}{_ROUNDED}"
    casts.append(ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, outputs=[played], name=f"{name}/float"))
    node.append(casts)
