"""Traces a module twice, on different data and sizes, and says what the trace froze."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from pipeline.base.values import Runtime, Signature, Tensors
from pipeline.capture import lines
from pipeline.capture.capture import capture_problem
from pipeline.capture.examples import Example, Examples
from pipeline.capture.torch_module import NamedModule
from pipeline.proof.comparison import FP32, compare

_MANGLED = re.compile(r"___torch_mangle_\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """A traced module.

    Attributes:
        module: takes and returns what the NamedModule does.
        frozen: what the trace fixed that the model does not, naming the line; empty for a faithful trace.
        where: that line, ``file:line``, where it is known.
        notes: warnings of the tracer that were looked into and found harmless.
    """

    module: Any
    frozen: str = ""
    where: str = ""
    notes: tuple[str, ...] = ()


def trace(module: NamedModule, signature: Signature, examples: Examples, *, capturable: bool | None = None) -> Traced:
    """Trace on the first example and try the result against a second trace, and on the second example.

    Values that differ from the model's, or two traces that are not the same graph, mean frozen control flow or sizes. A
    warning of the tracer alone is believed unless torch.export captures the model with dynamic dimensions, which proves
    that no Python control flow depends on the data; ``capturable`` None is to find that out if it matters. Raises what
    the tracer raises for a model it cannot trace.
    """
    traced, warned = _trace(module, examples.first)
    other, _ = _trace(module, examples.second)
    difference, line = _difference(traced, other)
    reason = _wrong_values(traced, examples.second, signature) or difference
    if reason:
        where = _place(warned[0]) if warned else line
        causes = "; ".join(_sentence(row) for row in warned) or difference
        return Traced(module=traced, frozen=f"{reason} ({causes})" if causes != reason else reason, where=where)
    if not warned:
        return Traced(module=traced)
    problem = "torch.export cannot capture it" if capturable is False else ""
    problem = problem or ("" if capturable else capture_problem(module, signature, examples.first))
    causes = "; ".join(_sentence(row) for row in warned)
    if problem:
        return Traced(module=traced, frozen=f"{causes}; {problem}", where=_place(warned[0]))
    return Traced(module=traced, notes=(f"the tracer warned, harmlessly as torch.export shows: {causes}",))


def _trace(module: NamedModule, example: Example) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("ignore")  # the user's own warnings were seen when the samples were run
        warnings.simplefilter("always", torch.jit.TracerWarning)
        inputs = tuple(tensor.clone() for tensor in example.inputs)
        traced = torch.jit.trace(module, inputs, check_trace=False)
    # torch's own layers warn about their shape checks, which torch itself hides too
    theirs = {(row.filename, row.lineno): row for row in caught if lines.is_theirs(row.filename)}
    return traced, list(theirs.values())


def _sentence(row: warnings.WarningMessage) -> str:
    """``Converting a tensor to a Python boolean (net.py:12)``."""
    return f"{str(row.message).split('. ')[0].split(' might cause')[0]} ({_place(row)})"


def _place(row: warnings.WarningMessage) -> str:
    return f"{row.filename}:{row.lineno}"


def _wrong_values(traced: Any, example: Example, signature: Signature) -> str:
    """Run a trace where it was not made; empty when it answers as the model does."""
    sizes = ", ".join(f"{letter}={size}" for letter, size in example.sizes.items())
    try:
        with torch.inference_mode():
            results = traced(*(tensor.clone() for tensor in example.inputs))
    except RuntimeError as error:
        return f"the trace fails at other sizes ({sizes}): {str(error).strip().splitlines()[-1]}"
    result = compare(named(results, signature), named(example.outputs, signature), FP32)
    return "" if result.passed else f"on other data ({sizes}) the trace does not answer as the model: {result.reason}"


def named(tensors: Sequence[torch.Tensor], signature: Signature) -> Tensors:
    """Numpy arrays by the signature's output names, each with at least one axis."""
    return {spec.name: tensor.numpy() for spec, tensor in zip(signature.outputs, tensors, strict=True)}


def unlike(runtime: Runtime, signature: Signature, pair: Examples) -> tuple[str, str] | None:
    """The sizes at which, and in what, an exported file does not answer as the model does; None where it does."""
    names = [spec.name for spec in signature.inputs]
    for example in (pair.first, pair.second):
        outputs = runtime.run({name: tensor.numpy() for name, tensor in zip(names, example.inputs, strict=True)})
        result = compare(outputs, named(example.outputs, signature), FP32)
        if not result.passed:
            return ", ".join(f"{letter}={size}" for letter, size in example.sizes.items()), result.reason
    return None


def _difference(one: Any, two: Any) -> tuple[str, str]:
    """The first node at which two traces are not the same graph, with its line; empty for equal graphs."""
    left, right = _bare(one), _bare(two)
    if _text(left) == _text(right):
        return "", ""
    for node, other in zip_longest(left.nodes(), right.nodes()):
        if node is None or other is None or _text(node) != _text(other):
            line = lines.of_node(node or other)
            return f"two traces differ{f' at {line}' if line else ''}", line
    return "two traces differ", ""


def _bare(traced: Any) -> Any:
    """The inlined graph without the shapes seen, and with names by position."""
    graph = traced.inlined_graph.copy()
    torch._C._jit_pass_erase_shape_information(graph)
    return torch._C._jit_pass_canonicalize(graph) or graph


def _text(printed: Any) -> str:
    """A graph or node without source comments, and without the numbers that keep class names apart."""
    return _MANGLED.sub("", re.sub(r" # .*$", "", str(printed), flags=re.MULTILINE))
