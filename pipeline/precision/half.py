"""fp16 and bf16: a float32 graph rewritten so that its nodes compute in a 16-bit float type.

Where a tensor is wanted in the other type than it is made in, one cast is put right behind the node that makes it, so
the nodes stay sorted, neighbouring float32 nodes hand on float32, and weights read by both kinds exist in both types.
Which inputs and outputs of an operator may be 16-bit is read from ONNX's own operator schemas.

``onnxruntime.transformers.float16`` (1.31.1), whose list of float32 operators is used here, does the same for plain
graphs. It is not used itself: two float32 nodes that read one tensor make it declare their cast twice (not valid
ONNX), it casts for nodes within a Loop's or If's body outside of the body, stops at equal names in two bodies, rounds
between neighbouring float32 nodes, and clamps constants. On graphs it can convert, the tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.base.errors import StageError
from pipeline.base.values import Array
from pipeline.formats.onnx import graph
from pipeline.precision import half_rules

Precision = Literal["fp16", "bf16"]

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SUFFIXES = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_BF16_OPSET = 22  # the first whose Conv, pooling, LSTM, … may be bfloat16 (ONNX 1.17, docs/Changelog.md)
_NAMED = 5  # nodes named in a note


def convert(
    source: Path, out_dir: Path, *, precision: Precision, keep_ops: Sequence[str] = (), keep_nodes: Collection[str] = ()
) -> dict[str, Any]:
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
        ``{"file", "notes", "properties"}``; properties are those of ``graph.save``, ``precision``, how many nodes
        compute in each type (``nodes_fp16`` or ``nodes_bf16``, and ``nodes_fp32``), and ``kept``: names of the nodes
        that stay float32 for another reason than their operator.

    Raises:
        StageError: nothing could be converted, a name in ``keep_nodes`` is not a node's, a tensor's type is unknown, or
            the converted graph is not valid ONNX.
    """
    stage = f"optimize[{precision}]"
    model = _loaded(source, _BF16_OPSET if precision == "bf16" else 0, stage)
    converter = _Converter(model, stage, _TYPES[precision], keep_ops, keep_nodes)
    converter.convert()
    try:
        properties = graph.save(model, out_dir)
    except StageError as error:
        raise StageError(
            f"{stage}: the converted graph is not valid ONNX",
            found=error.found,
            where=str(source),
            hint="keep that operator in float32",
        ) from error
    counts = {f"nodes_{precision}": converter.halves, "nodes_fp32": converter.floats}
    return {
        "file": graph.FILE,
        "notes": converter.notes(),
        "properties": {**properties, "precision": precision, **counts, "kept": converter.kept},
    }


def _loaded(source: Path, least_opset: int, stage: str) -> onnx.ModelProto:
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
            raise StageError(
                f"{stage}: the graph cannot be brought from opset {found} to {least_opset}",
                found=str(error),
                where=str(file),
                hint=f"export it with opset: {least_opset}",
            ) from error
    onnx.load_external_data_for_model(model, str(file.parent))
    return model


@dataclass(slots=True)
class _Value:
    """A float32 tensor of the source graph.

    Attributes:
        scope: where it is made.
        held: names of the tensors that hold it in the new graph, by element type.
        unfit: it is, or may hold, a constant beyond the 16-bit type's range.
        exact: it is made of integers and constants alone.
        constant: the initializer it is, if it is one.
        wanted: the types in which anything reads it.
    """

    scope: _Scope
    held: dict[int, str]
    unfit: bool = False
    exact: bool = False
    constant: TensorProto | None = None
    wanted: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Scope:
    """A graph or a body while it is converted: its tensors, and its nodes so far.

    Attributes:
        outputs: names its nodes must not lose; a body's outputs go by position and may be renamed.
    """

    graph: onnx.GraphProto
    parent: _Scope | None
    outputs: frozenset[str]
    values: dict[str, _Value] = field(default_factory=dict)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def find(self, name: str) -> _Value | None:
        """The float32 tensor a node of this scope means by ``name``; None for any other tensor."""
        found = self.values.get(name)
        return self.parent.find(name) if found is None and self.parent is not None else found

    def type(self, name: str) -> onnx.TypeProto | None:
        """The type of a tensor a node of this scope reads or makes, where it is known."""
        found = self.types.get(name)
        return self.parent.type(name) if found is None and self.parent is not None else found


class _Converter:
    """One conversion, in place."""

    def __init__(
        self, model: onnx.ModelProto, stage: str, half: int, keep_ops: Sequence[str], keep_nodes: Collection[str]
    ) -> None:
        self.model, self.stage, self.half = model, stage, half
        self.halves = self.floats = 0
        self._keep_ops, self._keep_nodes = frozenset(keep_ops), frozenset(keep_nodes)
        self._opsets = {half_rules.domain(item): item.version for item in model.opset_import}
        self._names = set(_names(model.graph))
        self._missing = sorted(set(keep_ops) - {node.op_type for node in _nodes(model.graph)})
        self._kept: dict[str, list[str]] = {}  # nodes by the reason they stay float32, but for the usual operators

    def convert(self) -> None:
        """Convert the graph.

        Raises:
            StageError: as for ``half.convert``.
        """
        named = {node.name for node in _nodes(self.model.graph)}
        if unknown := sorted(self._keep_nodes - named):
            raise StageError(
                f"{self.stage}: no node has a name that is to stay float32",
                found=_listed(unknown),
                hint="names are those of the exported graph",
            )
        self._graph(self.model.graph, None, TensorProto.FLOAT, False)
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
        kept = [f"{_listed(labels)} ({reason})" for reason, labels in self._kept.items()]
        notes = ["kept in float32: " + "; ".join(kept)] if kept else []
        return notes + ([f"no {_listed(self._missing)} in the graph to keep in float32"] if self._missing else [])

    def _graph(self, proto: onnx.GraphProto, parent: _Scope | None, boundary: int, kept: bool) -> None:
        """Convert a graph or a body; its float inputs and outputs become ``boundary``; its nodes stay if ``kept``."""
        outputs = frozenset(item.name for item in proto.output)
        scope = _Scope(proto, parent, outputs if parent is None else frozenset())
        scope.types = {item.name: item.type for item in (*proto.value_info, *proto.output, *proto.input)}
        nodes = [node for node in proto.node if node.output[0] in outputs or not _lifted(node, scope)]
        for tensor in proto.initializer:
            scope.types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, None)
            if tensor.data_type == TensorProto.FLOAT:
                held = {int(TensorProto.FLOAT): tensor.name}
                scope.values[tensor.name] = _Value(scope, held, unfit=self._unfit(tensor), constant=tensor)
        for item in proto.input:
            if _is_float(item.type):
                item.type.tensor_type.elem_type = boundary
                scope.values[item.name] = _Value(scope, {boundary: item.name})
        for node in nodes:
            self._node(node, scope, kept)
        for item in proto.output:
            if scope.find(item.name) is not None:
                item.name = self._read(item.name, scope, boundary)
                item.type.tensor_type.elem_type = boundary
        del proto.node[:]
        proto.node.extend(scope.nodes)
        _drop_unread(scope)

    def _node(self, node: onnx.NodeProto, scope: _Scope, kept: bool) -> None:
        """Convert a node and its bodies, and add it to the scope; ``kept``: it lies within a node that stays."""
        inputs = [scope.find(name) for name in node.input]
        made = [
            (place, name) for place, name in enumerate(node.output) if name and self._makes_float(node, name, scope)
        ]
        unfit = any(value is not None and value.unfit for value in inputs) or any(
            attribute.t.data_type == TensorProto.FLOAT and self._unfit(attribute.t) for attribute in node.attribute
        )
        exact = _of_integers(node, inputs, scope)
        stays = kept or self._stays(node, scope, unfit) or exact
        takes, makes = self._types(node, inputs, made, stays)
        touched = [kind for kind, value in zip(takes, inputs, strict=True) if value is not None]
        touched += [makes[place] for place, _ in made]
        self.halves += self.half in touched
        self.floats += bool(touched) and self.half not in touched
        node.input[:] = [self._read(name, scope, kind) for name, kind in zip(node.input, takes, strict=True)]
        for body in half_rules.bodies(node):
            self._graph(body, scope, TensorProto.FLOAT if stays else self.half, stays)
        scope.nodes.append(node)
        for place, name in made:
            unfit_too = unfit and node.op_type in half_rules.CARRIERS
            value = scope.values[name] = _Value(scope, {makes[place]: name}, unfit=unfit_too, exact=exact)
            if makes[place] == self.half and name in scope.outputs:
                node.output[place] = value.held[self.half] = self._fresh(name, self.half)
                value.held[TensorProto.FLOAT] = name
                self._cast(scope, node.output[place], name, TensorProto.FLOAT)

    def _makes_float(self, node: onnx.NodeProto, name: str, scope: _Scope) -> bool:
        kind = scope.types.get(name)
        if kind is None or (_is_tensor(kind) and not kind.tensor_type.elem_type):
            raise StageError(
                f"{self.stage}: the type of a tensor is not known",
                found=f"{name}, an output of {node.name} ({node.op_type})",
                hint="use precision: fp32; only graphs of standard ONNX operators are converted",
            )
        return _is_float(kind)

    def _stays(self, node: onnx.NodeProto, scope: _Scope, unfit: bool) -> bool:
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
        elif half_rules.schema(node, self._opsets) is None:
            reason = "no standard operator"
        if reason:
            self._kept.setdefault(reason, []).append(node.name)
            return True
        kinds = [scope.type(name) for name in (*node.input, *node.output)]
        return any(kind is not None and not _is_tensor(kind) for kind in kinds)  # sequences keep their type

    def _types(
        self, node: onnx.NodeProto, inputs: Sequence[_Value | None], made: Sequence[Any], stays: bool
    ) -> tuple[list[int], list[int]]:
        """Element types in which a node is to read its inputs and makes its outputs, where those are floats."""
        free = not made or node.op_type == "Cast"  # then float32 costs nothing where it is there anyway
        free = free and all(value is None or TensorProto.FLOAT in value.held for value in inputs)
        bodies = bool(half_rules.bodies(node))
        if stays or bodies or free:
            kind = self.half if bodies and not stays else int(TensorProto.FLOAT)
            return [kind] * len(node.input), [kind] * len(node.output)
        return half_rules.types(node, self._opsets, [value is not None for value in inputs], self.half)

    def _read(self, name: str, scope: _Scope, kind: int) -> str:
        """The tensor that holds ``name`` in a type; it is made where ``name`` itself is made, once."""
        value = scope.find(name)
        if value is None:
            return name
        value.wanted.add(kind)
        if kind not in value.held:
            (source,) = value.held.values()
            value.held[kind] = self._fresh(name, kind)
            if value.constant is not None:
                rounded = numpy_helper.from_array(self._rounded(value.constant), value.held[kind])
                value.scope.graph.initializer.append(rounded)
            else:
                self._cast(value.scope, source, value.held[kind], kind)
        return value.held[kind]

    def _cast(self, scope: _Scope, source: str, target: str, kind: int) -> None:
        scope.nodes.append(
            helper.make_node("Cast", [source], [target], name=self._fresh(f"{source}_to", kind), to=kind)
        )

    def _fresh(self, name: str, kind: int) -> str:
        fresh = f"{name}_{_SUFFIXES[kind]}"
        while fresh in self._names:
            fresh += "_"
        self._names.add(fresh)
        return fresh

    def _unfit(self, tensor: TensorProto) -> bool:
        """Whether rounding makes a finite value infinite, or leaves nothing of a tensor but zeros."""
        exact, rounded = numpy_helper.to_array(tensor), self._rounded(tensor)
        return bool((np.isfinite(exact) & ~np.isfinite(rounded)).any() or (exact.any() and not rounded.any()))

    def _rounded(self, tensor: TensorProto) -> Array:
        """A tensor's values in the 16-bit type, to nearest, ties to even."""
        with np.errstate(over="ignore"):  # asked about by _unfit
            rounded: Array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(self.half))
        return rounded


def _lifted(node: onnx.NodeProto, scope: _Scope) -> bool:
    """Turn a float Constant into an initializer, so that there is one kind of constants to round."""
    if node.op_type != "Constant" or not _is_float(scope.types.get(node.output[0], onnx.TypeProto())):
        return False
    attribute = node.attribute[0]
    if attribute.name == "value":
        array = numpy_helper.to_array(attribute.t)
    elif attribute.name in ("value_float", "value_floats"):
        array = np.asarray(helper.get_attribute_value(attribute), np.float32)
    else:
        return False
    scope.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
    return True


def _of_integers(node: onnx.NodeProto, inputs: Sequence[_Value | None], scope: _Scope) -> bool:
    """Whether a node computes sizes, positions, masks or pixels from integers; from 2048 on float16 misses some."""
    floats = [value for value in inputs if value is not None]
    if node.op_type == "Cast" and not floats:
        kind = scope.type(node.input[0])
        return kind is None or kind.tensor_type.elem_type not in half_rules.OTHER_FLOATS
    arithmetic = node.op_type in half_rules.ARITHMETIC and any(value.exact for value in floats)
    return arithmetic and all(value.exact or value.constant is not None for value in floats)


def _drop_unread(scope: _Scope) -> None:
    """Remove float32 constants that are only read in the 16-bit type."""
    for place in reversed(range(len(scope.graph.initializer))):
        value = scope.values.get(scope.graph.initializer[place].name)
        if value is not None and value.constant is not None and TensorProto.FLOAT not in value.wanted:
            del scope.graph.initializer[place]


def _is_tensor(kind: onnx.TypeProto) -> bool:
    return bool(kind.WhichOneof("value") == "tensor_type")


def _is_float(kind: onnx.TypeProto) -> bool:
    return _is_tensor(kind) and bool(kind.tensor_type.elem_type == TensorProto.FLOAT)


def _nodes(proto: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """A graph's nodes, those of bodies included."""
    for node in proto.node:
        yield node
        for body in half_rules.bodies(node):
            yield from _nodes(body)


def _names(proto: onnx.GraphProto) -> Iterator[str]:
    """Names taken by nodes and tensors, those of bodies included."""
    yield from (item.name for item in (*proto.input, *proto.initializer))
    for node in proto.node:
        yield from (node.name, *node.output)
        for body in half_rules.bodies(node):
            yield from _names(body)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
