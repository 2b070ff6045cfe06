"""torch.export with the YAML's dynamic dimensions, and whether what it captured holds for all their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from pipeline.base.errors import StageError, first_line
from pipeline.base.values import Signature
from pipeline.capture import examples
from pipeline.capture.examples import Example
from pipeline.capture.quiet import quiet
from pipeline.capture.torch_module import NamedModule

_READS_VALUES = ("aten.item.", "aten._local_scalar_dense.")
_LARGEST_PROBE = 65_536  # a limit beyond it is not tried out


def dynamic_shapes(signature: Signature) -> tuple[tuple[dict[int, Any], ...]]:
    """The YAML's letters as torch.export dimensions, one per letter, for NamedModule's ``forward(*inputs)``."""
    dims = {dim: torch.export.Dim(dim) for spec in signature.inputs for dim in spec.shape if isinstance(dim, str)}
    shapes = [{axis: dims[dim] for axis, dim in enumerate(spec.shape) if dim in dims} for spec in signature.inputs]
    return (tuple(shapes),)


def capture_problem(module: NamedModule, signature: Signature, example: Example) -> str:
    """Why torch.export cannot capture the model for all sizes of its dynamic dimensions; empty when it can."""
    try:
        with quiet():
            program = _capture(module, example, dynamic_shapes(signature))
    except Exception as error:  # noqa: BLE001 - any failure means the same: nothing is proven
        return f"torch.export says: {first_line(error)}"
    if any(str(node.target).startswith(_READS_VALUES) for node in program.graph.nodes):
        return "the model reads a number out of a tensor"
    return limit_problem(program, module, signature, example)


def limit_problem(
    program: torch.export.ExportedProgram, module: NamedModule, signature: Signature, example: Example
) -> str:
    """Whether the captured program leaves out sizes that the model runs at; empty when it does not.

    torch.export may narrow a dimension to what holds for the path it saw (``L <= 16``). That is right where the model
    refuses other sizes, and frozen control flow where it takes them another way: the sizes next to the limits tell.
    """
    for letter, found in _captured_sizes(program, signature):
        if isinstance(found, int):
            return f"torch.export fixed {letter} to {found}"
        for size in _beyond(program, found, example.sizes[letter]):
            inputs = {spec.name: tensor.numpy() for spec, tensor in zip(signature.inputs, example.inputs, strict=True)}
            try:
                examples.run(module, signature, examples.resized(inputs, signature, letter, size))
            except StageError:
                continue
            return f"torch.export captured the model for {_range(program, letter, found)}, and it also runs at {size}"
    return ""


def _capture(module: NamedModule, example: Example, shapes: Any) -> torch.export.ExportedProgram:
    try:
        return torch.export.export(module, example.inputs, dynamic_shapes=shapes, strict=False)
    except torch._dynamo.exc.UserError as error:  # its message may suggest narrower dimensions, such as L <= 512
        try:
            narrower = torch.export.dynamic_shapes.refine_dynamic_shapes_from_suggested_fixes(error.msg, shapes)
        except Exception:  # noqa: BLE001 - nothing that can be parsed was suggested
            raise error from None
        return torch.export.export(module, example.inputs, dynamic_shapes=narrower, strict=False)


def _captured_sizes(program: torch.export.ExportedProgram, signature: Signature) -> Iterator[tuple[str, Any]]:
    """Each letter with what it became: an int, or a torch.SymInt."""
    users = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec, name in zip(signature.inputs, users, strict=True):
        for dim, size in zip(spec.shape, values[name].shape, strict=True):
            if isinstance(dim, str):
                yield dim, size


def _beyond(program: torch.export.ExportedProgram, found: Any, size: int) -> list[int]:
    """Sizes just outside what the program was captured for; for a derived one (``8*_H``) the next number."""
    expression = found.node.expr
    limits = program.range_constraints.get(expression)
    if limits is None:
        return [] if expression.is_symbol else [size + 1]
    sizes = [int(limits.upper) + 1] if limits.upper < _LARGEST_PROBE else []
    return sizes + ([int(limits.lower) - 1] if limits.lower > 2 else [])


def _range(program: torch.export.ExportedProgram, letter: str, found: Any) -> str:
    limits = program.range_constraints.get(found.node.expr)
    return f"{letter} from {limits.lower} to {limits.upper} only" if limits else f"{letter} = {found} only"
