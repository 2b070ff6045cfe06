"""fp16 and bf16: a float32 graph rewritten so that its nodes compute in a 16-bit float type.

Where a tensor is wanted in the other type than it is made in, one cast is put right behind the node that makes it, so
the nodes stay sorted, neighbouring float32 nodes hand on float32, and weights read by both kinds exist in both types.
Which inputs and outputs of an operator may be 16-bit is read from ONNX's own operator schemas.

``onnxruntime.transformers.float16`` (1.31.1), whose list of float32 operators is used here, does the same for plain
graphs. It is not used itself: two float32 nodes that read one tensor make it declare their cast twice (not valid
ONNX), it casts for nodes within a Loop's or If's body outside of the body, stops at equal names in two bodies, rounds
between neighbouring float32 nodes, and clamps constants. On graphs it can convert, the tests hold the two together.
ModelOpt's AutoCast (0.47.0) is not used either: it fails on Loops, among others (docs/decisions.md has the comparison).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from pipeline.base.errors import StageError, listed
from pipeline.base.step import Outcome
from pipeline.base.values import Array, GoldenSamples, Progress, Runtime, Signature
from pipeline.formats.onnx import graph
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.precision import half_rules, simulate
from pipeline.precision.half_rules import FLOAT

Precision = Literal["fp16", "bf16"]

_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SUFFIXES = {FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_BF16_OPSET = 22  # the first whose Conv, pooling, LSTM, … may be bfloat16 (ONNX 1.17, docs/Changelog.md)


def make(
    source: Path,
    out_dir: Path,
    given: Mapping[str, Any],
    *,
    keep_nodes: Collection[str],
    measured: GoldenSamples | None,
    progress: Progress,
) -> Outcome:
    """As precision/table.py asks for it; see ``convert``."""
    keep_ops = tuple(given["keep_ops"])
    return convert(source, out_dir, precision=given["precision"], keep_ops=keep_ops, keep_nodes=keep_nodes)


def runnable(reduced: Path, out_dir: Path) -> Path:
    """See ``simulate.half``."""
    return simulate.half(reduced, out_dir)


def opened(path: Path, signature: Signature, consumer: str) -> Runtime:
    """As it will be served or, where it is bound for TensorRT, with its rounding."""
    if consumer == "onnxruntime":
        return OnnxRuntime(path, signature)
    with tempfile.TemporaryDirectory() as folder:
        return OnnxRuntime(simulate.half(path, Path(folder)), signature)


def convert(
    source: Path, out_dir: Path, *, precision: Precision, keep_ops: Sequence[str] = (), keep_nodes: Collection[str] = ()
) -> Outcome:
    """Write ``out_dir/model.onnx``: the graph in 16-bit floats, inputs and outputs as they were.

    In float32 stay the operators that lose too much (sums, normalisations, exponentials), those ONNX does not define
    for the type, ``keep_ops``, ``keep_nodes``, nodes that read a constant the type has no finite number for, or nothing
    but zeros, with what moves or adds its values on, and arithmetic on integers (sizes, positions). Bodies of Loop, If
    and Scan are converted too. A node without a name gets one, as by ``graph.name_nodes``.
    For bf16 the graph is brought to opset 22.

    Args:
        source: a float32 graph written by ``graph.save``: its shapes and types are inferred.
        out_dir: existing directory without a ``model.onnx``.
        precision: ``fp16`` (IEEE half) or ``bf16`` (float32's range with 8 bits of precision; not for ONNX Runtime).
        keep_ops: operators left in float32.
        keep_nodes: names of nodes left in float32, with their bodies; a node without a name goes by its first output.

    Returns:
        As values those of ``graph.save``, ``precision``, how many nodes compute in each type (``nodes_fp16`` or
        ``nodes_bf16``, and ``nodes_fp32``), and ``kept``: names of the nodes that stay float32 for another reason than
        their operator.

    Raises:
        StageError: nothing could be converted, a name in ``keep_nodes`` is not a node's, a tensor's type is unknown, or
            the converted graph is not valid ONNX.
    """
    stage = f"optimize[{precision}]"
    model = _loaded(source, _BF16_OPSET if precision == "bf16" else 0, stage)
    converter = _Converter(model.graph, stage, _TYPES[precision], keep_ops, keep_nodes)
    converter.convert()
    try:
        properties = graph.save(ir.to_proto(model), out_dir)
    except StageError as error:
        what = f"{stage}: the converted graph is not valid ONNX"
        raise StageError(what, found=error.found, where=str(source), hint="keep that operator in float32") from error
    counts = {f"nodes_{precision}": converter.halves, "nodes_fp32": converter.floats}
    values = {**properties, "precision": precision, **counts, "kept": converter.kept}
    return Outcome(file=graph.FILE, notes=tuple(converter.notes()), values=values)


def _loaded(source: Path, least_opset: int, stage: str) -> ir.Model:
    """The model at ``least_opset`` or above, its nodes named; weights in other files, however large, join last."""
    file = graph.file_of(source)
    model = onnx.load(str(file), load_external_data=False)
    graph.name_nodes(model)
    found = graph.opset(model)
    known = {item.name for item in (*model.graph.value_info, *model.graph.output)}
    if any(name not in known for node in model.graph.node for name in node.output if name):
        # a file served as it is given need not say the types of its tensors
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    if found < least_opset:
        try:
            model = onnx.version_converter.convert_version(model, least_opset)
            graph.name_nodes(model)  # those it has added
            model = onnx.shape_inference.infer_shapes(model, check_type=True, data_prop=True)
        except (RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
            what = f"{stage}: the graph cannot be brought from opset {found} to {least_opset}"
            hint = f"export it with opset: {least_opset}"
            raise StageError(what, found=str(error), where=str(file), hint=hint) from error
    onnx.load_external_data_for_model(model, str(file.parent))
    return ir.serde.deserialize_model(model)


@dataclass(slots=True)
class _Float:
    """A float32 tensor of the source graph.

    Attributes:
        scope: where it is made.
        held: the tensors that hold it in the new graph, by element type.
        unfit: it is, or may hold, a constant beyond the 16-bit type's range.
        exact: it is made of integers and constants alone.
        constant: its value, where it is an initializer.
    """

    scope: ir.Graph
    held: dict[ir.DataType, ir.Value]
    unfit: bool = False
    exact: bool = False
    constant: ir.TensorProtocol | None = None


class _Converter:
    """One conversion, in place."""

    def __init__(
        self, main: ir.Graph, stage: str, half: ir.DataType, keep_ops: Sequence[str], keep_nodes: Collection[str]
    ) -> None:
        self.main, self.stage, self.half = main, stage, half
        self.halves = self.floats = 0
        self._keep_ops, self._keep_nodes = frozenset(keep_ops), frozenset(keep_nodes)
        nodes = list(main.all_nodes())
        self._nodes = {node.name for node in nodes}
        self._missing = sorted(set(keep_ops) - {node.op_type for node in nodes})
        scopes = [main, *main.subgraphs()]
        self._names = self._nodes | {value.name for node in nodes for value in node.outputs}
        self._names |= {value.name for scope in scopes for value in (*scope.inputs, *scope.initializers.values())}
        self._floats: dict[ir.Value, _Float] = {}
        self._at: dict[ir.Graph, ir.Node] = {}  # the node at work in a graph and in the body it lies in
        self._kept: dict[str, list[str]] = {}  # nodes by the reason they stay float32, but for the usual operators

    def convert(self) -> None:
        """Convert the graph; raises as ``half.convert``."""
        if unknown := sorted(self._keep_nodes - self._nodes):
            what = f"{self.stage}: no node has a name that is to stay float32"
            raise StageError(what, found=listed(unknown), hint="names are those of the exported graph")
        self._graph(self.main, FLOAT, False)
        if not self.halves:
            raise StageError(
                f"{self.stage}: nothing to convert: no node can compute in {_SUFFIXES[self.half]}",
                found=f"{self.floats} nodes that compute in float32",
                hint="keep fewer nodes, or use precision: fp32",
            )

    @property
    def kept(self) -> list[str]:
        """Names of the nodes that stayed float32 for a reason of their own."""
        return sorted(name for names in self._kept.values() for name in names)

    def notes(self) -> list[str]:
        """What stayed float32 beyond the usual operators, and what was to stay but is not there."""
        kept = [f"{listed(labels)} ({reason})" for reason, labels in self._kept.items()]
        notes = ["kept in float32: " + "; ".join(kept)] if kept else []
        return notes + ([f"no {listed(self._missing)} in the graph to keep in float32"] if self._missing else [])

    def _graph(self, scope: ir.Graph, boundary: ir.DataType, kept: bool) -> None:
        """Convert a graph or a body; its float inputs and outputs become ``boundary``; its nodes stay if ``kept``."""
        for node in scope:
            _lift(node, scope)
        for value in scope.initializers.values():
            if (tensor := value.const_value) is not None and tensor.dtype == FLOAT:
                self._floats[value] = _Float(scope, {FLOAT: value}, unfit=self._unfit(tensor), constant=tensor)
        for value in scope.inputs:
            if _is_float(value):
                value.dtype = boundary
                self._floats[value] = _Float(scope, {boundary: value})
        for node in tuple(scope):
            self._at[scope] = node
            self._node(node, scope, kept)
        self._at.pop(scope, None)
        for place, value in enumerate(scope.outputs):
            if value in self._floats:
                scope.outputs[place] = self._read(value, boundary)
        for name, value in tuple(scope.initializers.items()):
            # those that are only read in the 16-bit type
            if value in self._floats and not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del scope.initializers[name]

    def _node(self, node: ir.Node, scope: ir.Graph, kept: bool) -> None:
        """Convert a node and its bodies; ``kept``: it lies within a node that stays."""
        inputs = [None if value is None else self._floats.get(value) for value in node.inputs]
        made = [(place, value) for place, value in enumerate(node.outputs) if self._makes_float(node, value)]
        attributes = [item.as_tensor() for item in node.attributes.values() if item.type == ir.AttributeType.TENSOR]
        unfit = any(value is not None and value.unfit for value in inputs)
        unfit = unfit or any(tensor.dtype == FLOAT and self._unfit(tensor) for tensor in attributes)
        exact = _of_integers(node, inputs)
        stays = kept or self._stays(node, unfit) or exact
        takes, makes = self._types(node, inputs, bool(made), stays)
        touched = [kind for kind, value in zip(takes, inputs, strict=True) if value is not None]
        touched += [makes[place] for place, _ in made]
        self.halves += self.half in touched
        self.floats += bool(touched) and self.half not in touched
        for place, (value, kind) in enumerate(zip(node.inputs, takes, strict=True)):
            if value is not None and value in self._floats:
                node.replace_input_with(place, self._read(value, kind))
        for body in half_rules.bodies(node):
            self._graph(body, FLOAT if stays else self.half, stays)
        for place, value in made:
            value.dtype = makes[place]
            unfit_too = unfit and node.op_type in half_rules.CARRIERS
            self._floats[value] = _Float(scope, {makes[place]: value}, unfit=unfit_too, exact=exact)
            if makes[place] == self.half and scope is self.main and value.is_graph_output():
                # a body's outputs go by position and may be renamed
                name = f"{value.name}"
                value.name = self._fresh(name, self.half)
                node.append(self._cast(self._floats[value], FLOAT, name))

    def _makes_float(self, node: ir.Node, value: ir.Value) -> bool:
        if value.name and (value.type is None or value.dtype == ir.DataType.UNDEFINED):
            raise StageError(
                f"{self.stage}: the type of a tensor is not known",
                found=f"{value.name}, an output of {node.name} ({node.op_type})",
                hint="use precision: fp32; only graphs of standard ONNX operators are converted",
            )
        return _is_float(value)

    def _stays(self, node: ir.Node, unfit: bool) -> bool:
        """Whether a node stays float32; unusual reasons are written down."""
        reason = ""
        if node.name in self._keep_nodes:
            reason = "named"
        elif node.op_type in self._keep_ops:
            reason = "operator named"
        elif node.op_type in half_rules.KEPT_OPS:
            return True
        elif unfit:
            reason = f"values {_SUFFIXES[self.half]} cannot hold"
        elif half_rules.schema(node, self.main.opset_imports) is None:
            reason = "no standard operator"
        if reason:
            self._kept.setdefault(reason, []).append(str(node.name))
            return True
        kinds = [value.type for value in (*node.inputs, *node.outputs) if value is not None]
        return any(not isinstance(kind, ir.TensorType | None) for kind in kinds)  # sequences keep their type

    def _types(
        self, node: ir.Node, inputs: Sequence[_Float | None], makes_floats: bool, stays: bool
    ) -> tuple[list[ir.DataType], list[ir.DataType]]:
        """Element types in which a node is to read its inputs and makes its outputs, where those are floats."""
        free = not makes_floats or node.op_type == "Cast"  # then float32 costs nothing where it is there anyway
        free = free and all(value is None or FLOAT in value.held for value in inputs)
        bodies = bool(half_rules.bodies(node))
        if stays or bodies or free:
            kind = self.half if bodies and not stays else FLOAT
            return [kind] * len(node.inputs), [kind] * len(node.outputs)
        return half_rules.types(node, self.main.opset_imports, [value is not None for value in inputs], self.half)

    def _read(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """The tensor that holds a float32 tensor in a type; it is made where the tensor itself is made, once."""
        found = self._floats[value]
        if kind not in found.held:
            name = self._fresh(f"{value.name}", kind)
            if found.constant is not None:
                found.held[kind] = ir.val(name, const_value=ir.tensor(self._rounded(found.constant), name=name))
                found.scope.initializers.add(found.held[kind])
            elif found.scope in self._at:
                self._at[found.scope].prepend(self._cast(found, kind, name))
            else:
                found.scope.append(self._cast(found, kind, name))
        return found.held[kind]

    def _cast(self, value: _Float, kind: ir.DataType, name: str) -> ir.Node:
        """A cast of a tensor that is held in one type so far."""
        (source,) = value.held.values()
        value.held[kind] = made = ir.val(name, kind, source.shape)
        fresh = self._fresh(f"{source.name}_to", kind)
        return ir.node("Cast", [source], {"to": int(kind)}, outputs=[made], name=fresh)

    def _fresh(self, name: str, kind: ir.DataType) -> str:
        fresh = f"{name}_{_SUFFIXES[kind]}"
        while fresh in self._names:
            fresh += "_"
        self._names.add(fresh)
        return fresh

    def _unfit(self, tensor: ir.TensorProtocol) -> bool:
        """Whether rounding makes a finite value infinite, or leaves nothing of a tensor but zeros."""
        exact, rounded = tensor.numpy(), self._rounded(tensor)
        return bool((np.isfinite(exact) & ~np.isfinite(rounded)).any() or (exact.any() and not rounded.any()))

    def _rounded(self, tensor: ir.TensorProtocol) -> Array:
        """A tensor's values in the 16-bit type, to nearest, ties to even."""
        with np.errstate(over="ignore"):  # asked about by _unfit
            rounded: Array = tensor.numpy().astype(self.half.numpy())
        return rounded


def _lift(node: ir.Node, scope: ir.Graph) -> None:
    """Turn a float Constant into an initializer, so that there is one kind of constants to round."""
    value = node.outputs[0]
    if node.op_type != "Constant" or "sparse_value" in node.attributes or value.is_graph_output():
        return
    if _is_float(value):
        constant = ir.val(value.name, const_value=ir.convenience.get_const_tensor(value))
        scope.initializers.add(constant)
        value.replace_all_uses_with(constant)
        scope.remove(node, safe=True)


def _of_integers(node: ir.Node, inputs: Sequence[_Float | None]) -> bool:
    """Whether a node computes sizes, positions, masks or pixels from integers; from 2048 on float16 misses some."""
    floats = [value for value in inputs if value is not None]
    if node.op_type == "Cast" and not floats:
        return node.inputs[0] is None or node.inputs[0].dtype not in half_rules.OTHER_FLOATS
    arithmetic = node.op_type in half_rules.ARITHMETIC and any(value.exact for value in floats)
    return arithmetic and all(value.exact or value.constant is not None for value in floats)


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == FLOAT
