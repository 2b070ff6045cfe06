"""int8 by explicit Q/DQ post-training quantisation: one graph for ONNX Runtime's CPU, another for TensorRT."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.calibrate import save_tensors_data

from pipeline.base import files
from pipeline.base.errors import StageError, listed
from pipeline.base.step import Outcome
from pipeline.base.values import GoldenSamples, Progress, Runtime, Signature
from pipeline.formats.onnx import graph
from pipeline.formats.onnx.onnxruntime import OnnxRuntime
from pipeline.precision import calibration, modelopt, qdq

_WIDEST = 1e4  # a step of int8 would be 79 and more: that is a mask for Softmax (-1e4, -65504, -3.4e38, -inf)
_BIAS = "adds a constant"  # the layer before it takes it in, at full precision
_ASKED = "as asked for"
_FILE, _OUT, _CACHE = "fp32.onnx", "int8.onnx", "ranges.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How one consumer wants its Q/DQ; ``options`` are the ``extra_options`` of quantize_static."""

    name: Literal["U8S8", "S8S8"]
    activations: QuantType
    ops: tuple[str, ...]
    options: Mapping[str, Any]


_RECIPES = {
    # Operators for which ONNX Runtime's CPU has integer kernels, less those that cost accuracy (Softmax, normalisation,
    # Sigmoid, Mul, Gather). Those after Add only pass integers on, where their input already is quantised. Gemm and
    # MatMul give floats at no cost, so that scores keep their order and what follows in a transformer its precision.
    "onnxruntime": _Recipe(
        name="U8S8",
        activations=QuantType.QUInt8,
        ops=(
            *qdq.LAYERS,
            *("Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"),
            *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        ),
        options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
    ),
    # TensorRT wants zero points of 0, no int32 DequantizeLinear (so no quantised bias), and Q/DQ on inputs only: it
    # fuses the output's rounding where the next layer is int8. Measured with tensorrt-rtx 1.7.1.
    "tensorrt": _Recipe(
        name="S8S8",
        activations=QuantType.QInt8,
        ops=(*qdq.LAYERS, "Add"),
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": [*qdq.LAYERS, "Add"],
        },
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is asked of either tool: the fp32 graph, prepared, and the file to write it to, with others beside it."""

    model: onnx.ModelProto
    file: Path
    samples: GoldenSamples
    recipe: _Recipe
    method: calibration.Method
    percentile: float
    reduce_range: bool
    keep_ops: Sequence[str]
    keep_nodes: Collection[str]
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A quantised graph, by which tool and version, and how many calibration samples that used.

    ``left_out`` are nodes that stayed fp32, though of an operator that could have been quantised, and why.
    """

    model: onnx.ModelProto
    tool: str
    taken: int
    left_out: Mapping[str, str]


def make(
    source: Path,
    out_dir: Path,
    given: Mapping[str, Any],
    *,
    keep_nodes: Collection[str],
    measured: GoldenSamples | None,
    progress: Progress,
) -> Outcome:
    """As precision/table.py asks for it; see ``quantize``."""
    assert measured is not None
    return quantize(
        source,
        measured,
        out_dir,
        consumer=given["consumer"],
        reduce_range=given["reduce_range"],
        keep_ops=tuple(given["keep_ops"]),
        keep_nodes=keep_nodes,
        progress=progress,
        **given["calibration"],
    )


def runnable(reduced: Path, out_dir: Path) -> Path:
    """ONNX Runtime runs Q/DQ."""
    return reduced


def opened(path: Path, signature: Signature, consumer: str) -> Runtime:
    """As it will be served or, where it is bound for TensorRT, with sums that do not saturate."""
    return OnnxRuntime(path, signature) if consumer == "onnxruntime" else OnnxRuntime(path, signature, float_qdq=True)


def quantize(
    source: Path,
    samples: GoldenSamples,
    out_dir: Path,
    *,
    consumer: Literal["onnxruntime", "tensorrt"],
    method: calibration.Method,
    percentile: float,
    reduce_range: bool,
    keep_ops: Sequence[str] = (),
    keep_nodes: Collection[str] = (),
    progress: Progress,
) -> Outcome:
    """Write ``out_dir/model.onnx`` with QuantizeLinear and DequantizeLinear around what shall be computed in int8.

    Weights have one scale per channel. For ``onnxruntime`` activations are unsigned with a zero point, for ``tensorrt``
    signed without one. What stays in fp32, operators and nodes by name (a node without one goes by its first output),
    has its own weights and, for TensorRT, reads unrounded values; on the CPU its neighbours pass on what they have
    rounded. ``reduce_range`` is for weights of 7 bits on CPUs without VNNI, which add pairs of products in 16 bits and
    saturate; TensorRT's sums have 32 bits.

    All samples are used, by their inputs; ``method`` and ``percentile`` as for ``calibration.measure``. The source is a
    file, or the directory of a model with external data; the parent of ``out_dir`` takes temporary files.

    Raises:
        StageError: no node can be quantised, a name in ``keep_nodes`` is not a node's, a sample was not used, or the
            result is not what its consumer takes.
    """
    model = graph.load(source)
    qdq.prepare(model, keep_ops, keep_nodes)
    with files.disk_errors(out_dir, "int8"), tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".int8-") as folder:
        job = _Job(
            model=model,
            file=Path(folder, _FILE),
            samples=samples,
            recipe=_RECIPES[consumer],
            method=method,
            percentile=percentile,
            reduce_range=reduce_range and consumer == "onnxruntime",
            keep_ops=keep_ops,
            keep_nodes=keep_nodes,
            progress=progress,
        )
        made, notes = _by_best_tool(job)
    if made.taken != len(samples.samples):
        raise StageError("int8: calibration did not use every sample", found=f"{made.taken} of {len(samples.samples)}")
    layers = qdq.check(made.model, model, job.recipe.name)
    notes += _notes(model, layers, keep_ops, made.left_out)
    return Outcome(file=graph.FILE, notes=tuple(notes), values=_facts(job, made, layers, out_dir))


def _facts(job: _Job, made: _Made, layers: int, out_dir: Path) -> dict[str, Any]:
    """Save the graph; what manifests tell of it.

    ``nodes_int8`` are the Conv, Gemm and MatMul nodes that read int8; ``kept`` the nodes that were left in fp32 on
    purpose, an Add of a constant aside.
    """
    measured = {"method": job.method, "samples": made.taken}
    by_operator = {node.name for node in job.model.graph.node if node.op_type in job.keep_ops}
    return {
        **graph.save(made.model, out_dir),
        "precision": "int8",
        "recipe": job.recipe.name,
        "tool": made.tool,
        "reduce_range": job.reduce_range,
        "calibration": {**measured, "percentile": job.percentile} if job.method == "percentile" else measured,
        "nodes_int8": layers,
        "kept": sorted(by_operator | {name for name, reason in made.left_out.items() if reason != _BIAS}),
    }


def _by_best_tool(job: _Job) -> tuple[_Made, list[str]]:
    """The graph, by ModelOpt where TensorRT runs it and it can make one; and why it could not."""
    version = modelopt.version() if job.recipe.name == "S8S8" else None
    if version is None:
        return _by_onnxruntime(job), []
    reason = f"of the methods, ModelOpt {version} has minmax only"
    if job.method == "minmax":  # its "entropy" is ONNX Runtime's of 128 bins, the extremes of the first run (0.47.0)
        _save(job)
        job.progress("quantising with ModelOpt", None)
        result, taken = modelopt.quantize(job.file, job.samples, keep_ops=job.keep_ops, keep_nodes=job.keep_nodes)
        if qdq.layers(result):
            left_out = dict.fromkeys(sorted(job.keep_nodes), _ASKED)
            return _Made(model=result, tool=f"nvidia-modelopt {version}", taken=taken, left_out=left_out), []
        # it leaves out layers of few channels, among others
        reason = f"ModelOpt {version} found no layer that gains by int8"
    return _by_onnxruntime(job), [f"made with the ONNX Runtime recipe: {reason}"]


def _by_onnxruntime(job: _Job) -> _Made:
    model, recipe = job.model, job.recipe
    ops = tuple(op for op in recipe.ops if op not in job.keep_ops)
    left_out = _left_out(model, ops, job.keep_nodes)
    nodes = [node for node in model.graph.node if node.op_type in ops and node.name not in left_out]
    qdq.separate(model, {node.name for node in nodes})
    _save(job)
    ranges = calibration.measure(
        job.file,
        job.samples,
        ops=ops,
        tensors=_tensors(nodes, recipe),
        method=job.method,
        percentile=job.percentile,
        limit=_WIDEST,
        progress=job.progress,
    )
    left_out |= _out_of_range(nodes, ranges.wide)
    job.progress("quantising", None)
    result = _quantized(job, ops, sorted(left_out), ranges)
    if recipe.name == "S8S8":
        qdq.read_unrounded(result, {node.name for node in nodes} - left_out.keys())
    tool = f"onnxruntime {onnxruntime.__version__}"
    return _Made(model=result, tool=tool, taken=ranges.samples, left_out=left_out)


def _save(job: _Job) -> None:
    """Weights beside it, so that it may be over 2 GB."""
    onnx.save_model(job.model, str(job.file), save_as_external_data=True, location=f"{job.file.name}.data")
    onnx.load_external_data_for_model(job.model, str(job.file.parent))


def _tensors(nodes: Sequence[onnx.NodeProto], recipe: _Recipe) -> set[str]:
    """Tensors that are quantised with these nodes."""
    silent = recipe.options["OpTypesToExcludeOutputQuantization"]
    outputs = {name for node in nodes if node.op_type not in silent for name in node.output}
    return outputs | {name for node in nodes for name in node.input}


def _left_out(model: onnx.ModelProto, ops: Sequence[str], keep_nodes: Collection[str]) -> dict[str, str]:
    """Nodes of ``ops`` that are not to be quantised, each with the reason."""
    constants = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ops]
    reasons = {node.name: _ASKED if node.name in keep_nodes else _unfit(node, constants) for node in nodes}
    return {name: reason for name, reason in reasons.items() if reason}


def _out_of_range(nodes: Sequence[onnx.NodeProto], wide: calibration.Extremes) -> dict[str, str]:
    reasons = {}
    for node in nodes:
        if reached := [wide[name] for name in (*node.input, *node.output) if name in wide]:
            low, high = min(low for low, _ in reached), max(high for _, high in reached)
            reasons[node.name] = f"values from {low:.3g} to {high:.3g}"
    return reasons


def _unfit(node: onnx.NodeProto, constants: Mapping[str, Sequence[int]]) -> str:
    """Why an integer kernel cannot compute this node well; empty when one can."""
    first, second = node.input[0], node.input[1] if len(node.input) > 1 else ""
    if node.op_type == "Add" and (first in constants or second in constants):
        return _BIAS
    if node.op_type in ("Conv", "Gemm") and second not in constants:
        return "its weights are computed"
    if node.op_type == "MatMul" and (first in constants or len(constants.get(second, (0, 0))) != 2):
        return "its weights are not a matrix on the right"  # scales per channel would lie along the summed dimension
    if node.op_type == "Gemm" and len(node.input) > 2 and len(constants.get(node.input[2], ())) != 1:
        return "its bias is not a vector"
    return ""


def _quantized(job: _Job, ops: Sequence[str], exclude: Sequence[str], ranges: calibration.Ranges) -> onnx.ModelProto:
    """What onnxruntime.quantization makes of the graph and its ranges."""
    cache, out = job.file.with_name(_CACHE), job.file.with_name(_OUT)
    save_tensors_data(ranges.data, cache)
    try:
        with _unlogged():
            quantize_static(
                job.file,
                out,
                calibration_cache_path=cache,
                calibrate_method=ranges.data.calibration_method,
                op_types_to_quantize=list(ops),
                nodes_to_exclude=list(exclude),
                per_channel=True,
                reduce_range=job.reduce_range,
                activation_type=job.recipe.activations,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
                extra_options=dict(job.recipe.options),
            )
        return graph.load(out)
    except Exception as error:
        raise StageError("int8: onnxruntime.quantization failed", found=f"{type(error).__name__}: {error}") from error


def _notes(model: onnx.ModelProto, layers: int, keep_ops: Sequence[str], left_out: Mapping[str, str]) -> list[str]:
    ops = Counter(node.op_type for node in model.graph.node)
    notes = []
    total = sum(ops[op] for op in qdq.LAYERS)
    if layers < total:
        notes.append(f"{layers} of {total} Conv, Gemm and MatMul nodes are int8")
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        if reason != _BIAS:  # the rule, and no loss
            by_reason.setdefault(reason, []).append(name)
    if by_reason:
        kept = (f"{listed(names)} ({reason})" for reason, names in by_reason.items())
        notes.append("kept in fp32: " + "; ".join(kept))
    if missing := [op for op in keep_ops if op not in ops]:
        notes.append(f"no {listed(missing)} in the graph to keep in fp32")
    return notes


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Drop what onnxruntime's quantisation logs, which goes to the root logger and would give that a handler.

    It advises to simplify the graph first, which the export did, and tells of nodes it passes over, as the notes do.
    """

    def ours(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in Path(record.pathname).parts

    handler = logging.NullHandler()
    logging.root.addHandler(handler)
    logging.root.addFilter(ours)
    try:
        yield
    finally:
        logging.root.removeFilter(ours)
        logging.root.removeHandler(handler)
