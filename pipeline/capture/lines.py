"""Which line of the user's model is to blame: from exceptions, tracer warnings and traced graphs."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGE = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_FRAME = re.compile(r"^(?P<file>.+)\((?P<line>\d+)\): ", re.MULTILINE)  # as Node.sourceRange() writes a stack
_SIZED = {"aten::view", "aten::reshape", "aten::expand", "aten::repeat", "aten::unflatten"}


def is_theirs(file: str) -> bool:
    """Whether a source file is the user's (or a model library's): neither torch's nor this package's."""
    return not file.startswith((_TORCH, _PACKAGE, "<"))


def of_error(error: BaseException) -> str:
    """``file:line`` of the deepest frame of the user's own code in an exception's traceback; empty if none."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_theirs(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def of_node(node: Any) -> str:
    """``file:line`` of the user's code that recorded a node of a traced graph; empty if none."""
    for frame in _FRAME.finditer(node.sourceRange()):
        if is_theirs(frame["file"]):
            return f"{frame['file']}:{frame['line']}"
    return ""


def of_fixed_size(module: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> str:
    """``file:line`` of the first view, reshape or expand whose sizes are all numbers; empty if none is found.

    Used once a model is known to answer with a wrong shape, to say where that probably comes from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only the graph's source lines are wanted of this trace
            graph = torch.jit.trace(module, tuple(inputs), check_trace=False).inlined_graph
    except Exception:  # noqa: BLE001 - a model that cannot be traced just has no line to show
        return ""
    for node in graph.nodes():
        if node.kind() in _SIZED and _all_constant(list(node.inputs())[1].node()) and (line := of_node(node)):
            return line
    return ""


def _all_constant(sizes: Any) -> bool:
    if sizes.kind() == "prim::ListConstruct":
        return all(item.node().kind() == "prim::Constant" for item in sizes.inputs())
    return bool(sizes.kind() == "prim::Constant")
