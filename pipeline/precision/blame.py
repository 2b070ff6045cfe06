"""Which nodes of a reduced-precision graph spoil its answers: the fp32 graph with one switch per converted node.

A switch replaces the node's output in the fp32 graph by the one the reduced graph computes from the same inputs, its
rounding, scales and quantised weights included. With one switch on, whatever changes at the outputs is that node's own
doing: nothing is inherited from upstream, and an error the rest of the graph swallows (a mask of -1e38 that becomes
-65504) costs nothing. With all on, the outputs are the reduced graph's.

This is the sensitivity analysis of Wu et al., "Integer Quantization for Deep Learning Inference: Principles and
Empirical Evaluation" (arXiv:2004.09602, partial quantization), and it needs no rebuild per node. Outputs are compared
by their signal-to-quantization-noise ratio, as in onnxruntime.quantization.qdq_loss_debug.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from onnxruntime.quantization import qdq_loss_debug

from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples
from pipeline.formats.onnx import graph
from pipeline.formats.onnx.onnxruntime import session_options
from pipeline.precision import calibration

Runnable = Callable[[Path, Path], Path]
"""Given a reduced graph and an empty folder, a graph that ONNX Runtime's CPU computes with the same rounding."""

_HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_REDUCED = "reduced/"  # before the names of what comes from the reduced graph; graph.finish leaves no slash in a name
_FP32 = "/fp32"  # after a tensor's name: its value before the switch
_SWITCH = "switch/"
_LIMIT_DB = 300.0  # about the range of a float64; also stands for outputs that are no longer finite
_PARTS = 8  # fewer cost more runs where all nodes are equally bad, more where one is


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A node of the fp32 graph and what its conversion alone does to the outputs.

    Attributes:
        sqnr_db: signal-to-quantization-noise ratio of the worst output with only this node converted, in dB, within
            ±300; -300 where an output is no longer finite.
    """

    name: str
    op: str
    sqnr_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    model: onnx.ModelProto
    types: Mapping[str, int]  # element types of the tensors outside sub-graphs; unknown ones are missing


class Switchboard:
    """The fp32 graph with a switch for every node that the reduced graph converts.

    A node belongs to its namesake of the same operator. Nodes within a Loop's or an If's body have no switch of their
    own; the node that holds them has one.

    Args:
        source: the fp32 graph.
        reduced: a graph made from it: float16, bfloat16, or float32 with QuantizeLinear and DequantizeLinear.
        samples: what the outputs are compared on; only the inputs are used.
        work_dir: existing empty folder for temporary files.
        runnable: see Runnable; node names must stay. Also needed for float16, because ONNX Runtime 1.31.1 drops the
            casts around an operator that its CPU has no float16 kernel for and computes it in float32, unrounded.

    Raises:
        StageError: the two graphs cannot be run as one.
    """

    def __init__(
        self, source: Path, reduced: Path, samples: GoldenSamples, work_dir: Path, *, runnable: Runnable
    ) -> None:
        fp32, made = _load(source), _load(reduced, weights=False)
        graph.name_nodes(fp32.model)  # as half.py and qdq.py have named those of the reduced graph
        (work_dir / "runnable").mkdir()
        run = _load(runnable(reduced, work_dir / "runnable"))
        self.nodes = tuple(_converted(fp32, made))
        stored = {node.name: [made.types.get(name, 0) for name in node.output] for node in made.model.graph.node}
        _merge(fp32, run, [node.name for node in self.nodes], stored)
        self._session = _open(fp32.model, work_dir / "board.onnx")
        self._feeds = [inputs for inputs, _ in calibration.feeds(samples)]
        self._reference = self._run(())

    def sqnr_db(self, on: Collection[int]) -> float:
        """SQNR of the worst output, in dB, with the nodes of these indices converted; inf where nothing changes."""
        return min(map(_sqnr_db, self._reference, self._run(on)))

    def worst_first(self) -> Iterator[Suspect]:
        """Nodes in the order of what their conversion costs, found as far as they are asked for.

        The group of nodes that costs most is parted until it is one node, much as ``polygraphy debug precision``
        bisects: a node that stands out is found within 8·log8(nodes) runs, all nodes within 8/7 runs each. A group is
        taken to cost no less than any of its nodes, which holds unless their errors cancel. Costs within one decibel
        are equal, and the later node is first: what is rounded between two nodes is blamed on both, and it is the
        reader's quantisation that goes when the reader is kept. Nodes that change nothing are left out.
        """
        groups: list[tuple[int, int, int, float]] = []  # a heap: cost in whole dB, -end, first, cost

        def part(first: int, end: int) -> None:
            parts = min(_PARTS, end - first)
            bounds = [first + (end - first) * number // parts for number in range(parts + 1)]
            for start, stop in itertools.pairwise(bounds):
                cost = self.sqnr_db(range(start, stop))
                if cost < math.inf:
                    heapq.heappush(groups, (round(cost), -stop, start, cost))

        if self.nodes:
            part(0, len(self.nodes))
        while groups:
            _, end, first, cost = heapq.heappop(groups)
            if -end - first == 1:
                node = self.nodes[first]
                yield Suspect(name=node.name, op=node.op_type, sqnr_db=round(cost, 1))
            else:
                part(first, -end)

    def _run(self, on: Collection[int]) -> list[Array]:
        """Each output over all samples, flat, as float64."""
        switches = {f"{_SWITCH}{number}": np.asarray(number in on) for number in range(len(self.nodes))}
        try:
            runs = [self._session.run(None, {**feeds, **switches}) for feeds in self._feeds]
        except Exception as error:
            raise StageError("repair: the fp32 and the reduced graph fail as one", found=str(error)) from error
        return [
            np.concatenate([part.ravel().astype(np.float64) for part in parts]) for parts in zip(*runs, strict=True)
        ]


def _load(path: Path, *, weights: bool = True) -> _Loaded:
    """Types first: they are inferred without the weights, so that it works over 2 GB."""
    file = graph.file_of(path)
    model = onnx.load(str(file), load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        item.name: item.type.tensor_type.elem_type for item in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    types |= {item.name: item.data_type for item in inferred.initializer}
    if weights:
        onnx.load_external_data_for_model(model, str(file.parent))
    return _Loaded(model=model, types={name: kind for name, kind in types.items() if kind})


def _converted(fp32: _Loaded, made: _Loaded) -> Iterator[onnx.NodeProto]:
    """Nodes whose namesake reads or writes half-precision floats, or reads what was quantised."""
    twins = _twins(fp32.model, made.model)
    dequantised = {node.output[0] for node in made.model.graph.node if node.op_type == "DequantizeLinear"}
    for node in fp32.model.graph.node:
        twin = twins.get(node.name)
        if twin is None or not any(fp32.types.get(name) == TensorProto.FLOAT for name in node.output):
            continue
        halves = any(made.types.get(name) in _HALF for name in (*twin.input, *twin.output))
        if halves or dequantised.intersection(twin.input):
            yield node


def _twins(fp32: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes of ``other`` by the name that they share with a node of the fp32 graph; ONNX Runtime wants them unique."""
    ops = {node.name: node.op_type for node in fp32.graph.node if node.name}
    return {node.name: node for node in other.graph.node if ops.get(node.name) == node.op_type}


def _merge(fp32: _Loaded, run: _Loaded, names: Sequence[str], stored: Mapping[str, Sequence[int]]) -> None:
    """Turn the fp32 graph into the board, in place, with switches for the nodes of these names, in their order.

    Nodes of the reduced graph ``run`` that are no one's namesake (casts, Q/DQ) come along. All of them read the fp32
    graph's tensors, as the switches leave them, wherever a namesake computes one. ``stored`` are, by node, the types
    in which the reduced graph keeps its outputs.
    """
    board, twins = fp32.model.graph, _twins(fp32.model, run.model)
    own = {node.name: node for node in board.node}
    added: list[onnx.NodeProto] = []
    reads = {item.name: item.name for item in run.model.graph.input} | _add_weights(board, run.model.graph)
    for node in run.model.graph.node:
        if node.name not in twins:
            reads |= {name: _REDUCED + name for name in node.output if name}
            continue
        for name, origin in zip(node.output, own[node.name].output, strict=False):
            here, there = fp32.types.get(origin), run.types.get(name)
            reads[name] = origin if not there or here == there else _cast(added, origin, there)
    for node in run.model.graph.node:
        if node.name not in twins or node.name in names:
            added.append(_moved(node, reads))
    for number, name in enumerate(names):
        switch = f"{_SWITCH}{number}"
        board.input.append(helper.make_tensor_value_info(switch, TensorProto.BOOL, []))
        for position, (output, twin_output) in enumerate(zip(own[name].output, twins[name].output, strict=False)):
            if fp32.types.get(output) != TensorProto.FLOAT:
                continue  # indices follow the fp32 graph
            value = _requantised(added, run.model.graph, twin_output, reads)
            if stored[name][position] in _HALF:
                value = _cast(added, value, stored[name][position])
            value = _cast(added, value, TensorProto.FLOAT)
            own[name].output[position] = output + _FP32
            added.append(helper.make_node("Where", [switch, value, output + _FP32], [output]))
    board.node.extend(added)
    del board.value_info[:]
    _join_versions(fp32.model, run.model)


def _add_weights(board: onnx.GraphProto, reduced: onnx.GraphProto) -> dict[str, str]:
    """Bring the reduced graph's weights along, but for those the board has; returns their names there."""
    own = {tensor.name: tensor for tensor in board.initializer}
    names = {}
    for tensor in reduced.initializer:
        if tensor.name in own and own[tensor.name] == tensor:
            names[tensor.name] = tensor.name
            continue
        names[tensor.name] = _REDUCED + tensor.name
        board.initializer.add().CopyFrom(tensor)
        board.initializer[-1].name = _REDUCED + tensor.name
    return names


def _moved(node: onnx.NodeProto, reads: Mapping[str, str]) -> onnx.NodeProto:
    """A node of the reduced graph as it stands on the board."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = node.name and _REDUCED + node.name
    copy.output[:] = [name and _REDUCED + name for name in node.output]
    _rename_inputs(copy, reads)
    return copy


def _rename_inputs(node: onnx.NodeProto, reads: Mapping[str, str]) -> None:
    node.input[:] = [reads.get(name, name) for name in node.input]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                _rename_inputs(inner, reads)


def _requantised(added: list[onnx.NodeProto], reduced: onnx.GraphProto, name: str, reads: Mapping[str, str]) -> str:
    """What the reduced graph passes on for a node's output: through Q/DQ where nothing else reads it."""
    value = _REDUCED + name
    quantise = _only_reader(reduced, name, "QuantizeLinear")
    dequantise = quantise and _only_reader(reduced, quantise.output[0], "DequantizeLinear")
    for node in (quantise, dequantise) if quantise and dequantise else ():
        # The pair's own copy on the board reads the switched tensor; this one reads the node's output itself.
        copy = _moved(node, reads)
        copy.name = ""
        copy.input[0], value = value, f"{value}/{node.op_type}"
        copy.output[0] = value
        added.append(copy)
    return value


def _only_reader(reduced: onnx.GraphProto, name: str, op: str) -> onnx.NodeProto | None:
    """The node that reads a tensor, the first of several; None where one of them is another operator."""
    readers = [node for node in reduced.node if name in node.input]
    return readers[0] if readers and all(node.op_type == op for node in readers) else None


def _cast(added: list[onnx.NodeProto], name: str, to: int) -> str:
    added.append(helper.make_node("Cast", [name], [f"{_REDUCED}{name}/{len(added)}"], to=to))
    return str(added[-1].output[0])


def _join_versions(board: onnx.ModelProto, reduced: onnx.ModelProto) -> None:
    versions = {item.domain: item.version for item in board.opset_import}
    for item in reduced.opset_import:
        versions[item.domain] = max(item.version, versions.get(item.domain, 0))
    del board.opset_import[:]
    board.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    board.ir_version = max(board.ir_version, reduced.ir_version)


def _open(model: onnx.ModelProto, file: Path) -> onnxruntime.InferenceSession:
    """Open by path, with the weights beside it: two graphs' weights may be over 2 GB.

    Nothing is optimised, as in qdq_loss_debug: a fused or folded Q/DQ pair would not round where the graph says so.
    """
    onnx.save_model(model, str(file), save_as_external_data=True, location=f"{file.name}.data")
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise StageError(
            "repair: the fp32 and the reduced graph cannot be run as one",
            found=str(error),
            hint="set `repair: off` and name the nodes to keep in fp32 yourself",
        ) from error


def _sqnr_db(reference: Array, actual: Array) -> float:
    if reference.shape != actual.shape:
        return -_LIMIT_DB  # a shape that depends on values
    if np.array_equal(reference, actual, equal_nan=True):
        return math.inf
    usable = np.isfinite(reference)
    if not np.isfinite(actual[usable]).all():
        return -_LIMIT_DB
    ratio = qdq_loss_debug.compute_signal_to_quantization_noice_ratio(reference[usable], actual[usable])
    return float(np.clip(ratio, -_LIMIT_DB, _LIMIT_DB))
