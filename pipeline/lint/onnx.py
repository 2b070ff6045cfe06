"""Lint rules on ONNX files: what ONNX Runtime of the target and Triton's backend for it refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.lint.model import Findings, Model, Rule, below, dims_text, enum_name, is_regular, model_dims, printable

# protobuf refuses messages of 2 GiB; under that, a file and its parsed copy both sit in memory while it is checked.
_PROTOBUF_LIMIT_BYTES = 2 << 30
_INSPECTED_BYTES = 1 << 30

# onnx.TensorProto.DataType -> Triton's DataType; onnxruntime_backend, ModelConfigDataTypeToOnnxDataType.
_NAMES = "FP32 UINT8 INT8 UINT16 INT16 INT32 INT64 STRING BOOL FP16 FP64 UINT32 UINT64"
_TYPES = {number: f"TYPE_{name}" for number, name in enumerate(_NAMES.split(), start=1)}
_EXTERNAL = 1  # onnx.TensorProto.EXTERNAL
# Operator domains compiled into ONNX Runtime.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
_VENDOR_DOMAIN = "com.microsoft"  # and all that start with it


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFile:
    """One parsed ONNX file of a version.

    Attributes:
        path: the file.
        proto: its ModelProto, without external data.
        inputs: name -> value info of the inputs a caller must give.
        overridable: name -> value info of inputs that have an initializer.
        outputs: name -> value info.
    """

    path: Path
    proto: Any
    inputs: dict[str, Any]
    overridable: dict[str, Any]
    outputs: dict[str, Any]


FileRule = Callable[[Model, OnnxFile], Findings]


def onnx_files(model: Model) -> Findings:
    """All rules on every version's ONNX file."""
    if model.backend != "onnxruntime":
        return
    for version in model.versions.values():
        for path in model.files(version, inside="model.onnx"):
            yield from _onnx_file(model, path)


def _onnx_file(model: Model, path: Path) -> Findings:
    at, size = model.at(path), path.stat().st_size
    if size >= _PROTOBUF_LIMIT_BYTES:
        reason = f"the file has {size} bytes, and protobuf reads no message of 2 GiB or more."
        fix = "save it with external data, as a directory model.onnx/ that holds model.onnx and the data files"
        yield at.error("onnx-over-2-gib", reason, fix)
    elif size > _INSPECTED_BYTES:
        reason = f"the file has {size} bytes, too many to be read here; its content is unchecked."
        fix = "save its weights as external data, as a directory model.onnx/, which is checked"
        yield at.warning("onnx-not-inspected", reason, fix)
    elif (opened := _open(path)) is None:
        reason = "this is no whole ONNX model; it may be truncated, or of another format."
        yield at.error("onnx-corrupt", reason, "copy the file again, or export it again")
    else:
        for rule in FILE_RULES:
            yield from rule(model, opened)


def _open(path: Path) -> OnnxFile | None:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.ModelProto.FromString(path.read_bytes())
    except DecodeError:
        return None
    if proto.ir_version <= 0 or not proto.opset_import or not proto.graph.output:
        return None  # other bytes can parse as a message of unknown fields
    initialized = {item.name for item in proto.graph.initializer}
    given = {item.name: item for item in proto.graph.input}
    return OnnxFile(
        path=path,
        proto=proto,
        inputs={key: item for key, item in given.items() if key not in initialized},
        overridable={key: item for key, item in given.items() if key in initialized},
        outputs={item.name: item for item in proto.graph.output},
    )


def versions(model: Model, opened: OnnxFile) -> Findings:
    """Opset and file format are within the target's ONNX Runtime."""
    limits, at = model.target, model.at(opened.path)
    runtime = f"ONNX Runtime {limits.onnxruntime} of release {limits.release}"
    opsets = [item.version for item in opened.proto.opset_import if item.domain in ("", "ai.onnx")]
    if opsets and max(opsets) > limits.max_opset:
        reason = f"the model uses opset {max(opsets)}; {runtime} loads up to {limits.max_opset}."
        fix = f"export it with opset {limits.max_opset} or lower, or choose a later target"
        yield at.error("onnx-opset", reason, fix)
    if opened.proto.ir_version > limits.max_ir_version:
        reason = f"the file has IR version {opened.proto.ir_version}; {runtime} loads up to {limits.max_ir_version}."
        fix = f"set model.ir_version = {limits.max_ir_version} with the onnx package and save it again"
        yield at.error("onnx-ir-version", reason, fix)


def tensor_names(model: Model, opened: OnnxFile) -> Findings:
    """The file's inputs and outputs are the configuration's."""
    at = model.at(opened.path)
    for name in sorted(opened.inputs.keys() - model.fed_inputs):
        reason = f"the model needs the input {printable(name)!r}, which config.pbtxt does not have."
        yield at.error("onnx-input-unconfigured", reason, "add it to config.pbtxt")
    fed = model.fed_inputs - opened.overridable.keys()
    outputs = {item.name for item in model.config.output}
    for kind, names, held in (("input", fed, opened.inputs), ("output", outputs, opened.outputs)):
        for name in sorted(names - held.keys()):
            reason = (
                f"config.pbtxt has the {kind} {printable(name)!r}; the model has "
                f"{printable(', '.join(sorted(held)) or 'none')}."
            )
            yield at.error("onnx-tensor-unknown", reason, f"use the model's {kind} names")


def _pairs(model: Model, opened: OnnxFile) -> Iterator[tuple[str, str, Any, Any]]:
    """(kind, what to call it, configured tensor, tensor type in the file) for all that both have."""
    for kind, configured, held in (
        ("input", model.config.input, {**opened.inputs, **opened.overridable}),
        ("output", model.config.output, opened.outputs),
    ):
        for item in configured:
            if item.name in held:
                yield kind, f"{kind} {printable(item.name)!r}", item, held[item.name].type


def data_types(model: Model, opened: OnnxFile) -> Findings:
    """The configured types are the file's, and such as the backend handles."""
    at = model.at(opened.path)
    for _, what, item, held in _pairs(model, opened):
        if not held.HasField("tensor_type"):
            reason = f"{what} is no tensor but a sequence, map or optional, which Triton cannot carry."
            fix = "export the model with plain tensors (scikit-learn classifiers: zipmap=False)"
            yield at.error("onnx-not-a-tensor", reason, fix)
            continue
        wanted, found = enum_name(item, "data_type"), _TYPES.get(held.tensor_type.elem_type)
        if found is None:
            reason = f"{what} has a type (number {held.tensor_type.elem_type}) the backend does not handle."
            yield at.error("onnx-data-type", reason, "export the model with float32, float16 or integer tensors")
        elif wanted != found:
            reason = f"{what} is {wanted} in config.pbtxt and {found} in the model."
            yield at.error("onnx-data-type", reason, f"write data_type: {found}")


def shapes(model: Model, opened: OnnxFile) -> Findings:
    """Rank and sizes agree, and the batch dimension is symbolic on every tensor (CompareDimsSupported)."""
    scattered = {name for item in model.config.batch_output for name in item.target_name}
    for kind, what, item, held in _pairs(model, opened):
        if not held.HasField("tensor_type") or not held.tensor_type.HasField("shape") or item.name in scattered:
            continue
        found = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in held.tensor_type.shape.dim]
        if kind == "input" and item.allow_ragged_batch:
            if found != [-1]:
                reason = f"{what} is ragged, which needs the shape [-1] in the model; it has {dims_text(found)}."
                fix = "remove allow_ragged_batch, or export the input as one variable dimension"
                yield model.at(opened.path).error("onnx-ragged-shape", reason, fix)
        elif found:
            yield from _shape(model, opened, kind, what, item, found)
        elif any(dim != 1 for dim in model_dims(item)):
            reason = f"{what} is a scalar in the model; config.pbtxt has dims {dims_text(model_dims(item))}."
            yield model.at(opened.path).error("onnx-shape", reason, "write dims: [ 1 ]")


def _shape(model: Model, opened: OnnxFile, kind: str, what: str, item: Any, found: list[int]) -> Findings:
    at, wanted, batched = model.at(opened.path), model.shape(item), model.batched
    if batched and found[0] != -1:
        reason = (
            f"max_batch_size is {model.config.max_batch_size}, and the model fixes dimension 0 of {what} to {found[0]}."
        )
        fix = "export the model with a dynamic first dimension on all inputs and outputs, or set max_batch_size to 0"
        yield at.error("onnx-batch-dimension", reason, fix)
    elif len(found) != len(wanted) or any(size not in (-1, dim) for size, dim in zip(found, wanted, strict=True)):
        reason = (
            f"{what} is {dims_text(wanted)} by config.pbtxt{' with its batch dimension' * batched} and "
            f"{dims_text(found)} in the model."
        )
        yield at.error("onnx-shape", reason, f"write dims: {dims_text(found[batched:])}")
    elif kind == "output" and found != wanted:
        # The backend compares with what ONNX Runtime infers, which may be more than the file states.
        reason = (
            f"{what} is {dims_text(wanted)} by config.pbtxt and {dims_text(found)} in the model; the load fails "
            "unless ONNX Runtime infers the fixed sizes."
        )
        yield at.warning("onnx-output-shape", reason, f"write dims: {dims_text(found[batched:])}")


def external_data(model: Model, opened: OnnxFile) -> Findings:
    """Every external file lies beside the ONNX file and is long enough."""
    ends: dict[str, int] = {}
    for tensor in _tensors(opened.proto):
        if tensor.data_location == _EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            location = entry.get("location", "")
            end = _whole(entry.get("offset", "")) + _whole(entry.get("length", ""))
            ends[location] = max(ends.get(location, 0), end)
    at = model.at(opened.path)
    for location, end in sorted(ends.items()):
        path = below(opened.path.parent, location)
        if path is None:
            reason = f"the model's weights are in {printable(location)!r}, which is not below the model's own folder."
            fix = "save the model again with a plain relative file name for its external data"
            yield at.error("onnx-external-data-path", reason, fix)
        elif not is_regular(path):
            reason = f"{at} keeps weights in this file, which is not there."
            fix = "copy the data file too, beside the ONNX file"
            yield model.at(path).error("onnx-external-data-missing", reason, fix)
        elif path.stat().st_size < end:
            reason = f"{at} expects at least {end} bytes in this file; it has {path.stat().st_size}."
            yield model.at(path).error("onnx-external-data-size", reason, "copy the file again: it is truncated")


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _tensors(proto: Any) -> Iterator[Any]:
    """All tensors of a model: initializers and attributes, in subgraphs and functions too."""
    graphs, nodes = [proto.graph], [node for item in proto.functions for node in item.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield attribute.t
            yield from attribute.tensors
            graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def operator_domains(model: Model, opened: OnnxFile) -> Findings:
    """Operators of other domains need a library."""
    own = {item.domain for item in opened.proto.functions}
    used = {node.domain for node in opened.proto.graph.node}
    foreign = sorted(domain for domain in used - own - {*_DOMAINS} if not domain.startswith(_VENDOR_DOMAIN))
    if foreign and not model.config.model_operations.op_library_filename:
        reason = f"the model uses operators of {printable(', '.join(foreign))}, which ONNX Runtime does not have."
        fix = "name their library in model_operations { op_library_filename: [ … ] }"
        yield model.at(opened.path).warning("onnx-custom-operators", reason, fix)


FILE_RULES: tuple[FileRule, ...] = (versions, tensor_names, data_types, shapes, external_data, operator_domains)
ONNX_RULES: tuple[Rule, ...] = (onnx_files,)
