"""Finishing an exported ONNX graph: clean, simplified, checked, and laid out as Triton wants it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxslim
from google.protobuf.message import Message

from pipeline.base.errors import StageError, first_line
from pipeline.base.step import Outcome

FILE = "model.onnx"
PROTOBUF_LIMIT_BYTES = 2_000_000_000  # a protobuf message ends at 2 GiB
_DATA = "model.onnx.data"
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them
_SCOPED = re.compile(r"[/:]")
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def finish(
    source: Path,
    out_dir: Path,
    *,
    simplify: bool,
    max_ir_version: int,
    external_data_threshold_bytes: int = PROTOBUF_LIMIT_BYTES,
) -> Outcome:
    """Clean, simplify, infer shapes, check, and write ``out_dir/model.onnx``; the values are its ``properties``.

    Everything that names the machine or the exporter's workings (metadata, doc strings, value infos) is dropped, so
    equal graphs give equal bytes. A simplified graph that is invalid, or has other inputs or outputs, is not used, and
    that is noted.

    Args:
        source: the exporter's file, external data beside it.
        out_dir: existing directory other than the source's.
        simplify: fold constants and remove redundant nodes with onnxslim.
        max_ir_version: the file's IR version is lowered to it.
        external_data_threshold_bytes: with more weights than this, ``model.onnx`` is a directory that holds
            ``model.onnx`` and ``model.onnx.data``, as Triton's onnxruntime backend reads it.

    Raises:
        StageError: the graph is not valid ONNX.
    """
    model = onnx.load(str(source))
    _strip(model)
    _rename_scoped(model)
    model.ir_version = min(model.ir_version, max_ir_version)
    note = ""
    if simplify and _weights_bytes(model) > PROTOBUF_LIMIT_BYTES:
        note = "not simplified: onnxslim cannot take a graph over 2 GB"
    elif simplify:
        model, note = _simplified(model)
    saved = save(model, out_dir, external_data_threshold_bytes=external_data_threshold_bytes)
    return Outcome(file=FILE, notes=(note,) if note else (), values=saved)


def load(path: Path) -> onnx.ModelProto:
    """Read a model this room wrote: the file, or the directory that holds it and its external data."""
    return onnx.load(str(file_of(path)))


def file_of(path: Path) -> Path:
    """The ``.onnx`` file itself, where ``path`` may be the directory of a model with external data."""
    return path / FILE if path.is_dir() else path


def save(
    model: onnx.ModelProto, out_dir: Path, *, external_data_threshold_bytes: int = PROTOBUF_LIMIT_BYTES
) -> Mapping[str, Any]:
    """Clean a model in place, write ``out_dir/model.onnx`` with fresh shapes, and check it whole; its ``properties``.

    Raises:
        StageError: the graph is not valid ONNX.
    """
    _strip(model)
    external = _weights_bytes(model) > external_data_threshold_bytes
    found = properties(model, external=external)
    _infer_and_check(_write(model, out_dir, external))
    return found


def properties(model: onnx.ModelProto, *, external: bool) -> Mapping[str, Any]:
    """What manifests tell of a file, with whether its weights lie beside it."""
    nodes = len(model.graph.node)
    return {"opset": opset(model), "ir_version": model.ir_version, "nodes": nodes, "external_data": external}


def _weights_bytes(model: onnx.ModelProto) -> int:
    return sum(tensor.ByteSize() for tensor in model.graph.initializer)


def opset(model: onnx.ModelProto) -> int:
    """The version of the standard operators a model imports; 0 when it imports none."""
    return next((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), 0)


def external_files(model: onnx.ModelProto) -> tuple[str, ...]:
    """Locations of a model's external data, as written in it, sorted."""
    tensors = (part for part in _messages(model.graph) if isinstance(part, onnx.TensorProto))
    entries = (entry for tensor in tensors for entry in tensor.external_data if entry.key == "location")
    return tuple(sorted({entry.value for entry in entries}))


def _strip(model: onnx.ModelProto) -> None:
    """Drop metadata, doc strings and value infos, in sub-graphs and functions too."""
    for message in (model, *_messages(model.graph), *(part for item in model.functions for part in _messages(item))):
        for field in ("doc_string", "metadata_props", "value_info"):
            if field in message.DESCRIPTOR.fields_by_name:
                message.ClearField(field)


def _rename_scoped(model: onnx.ModelProto) -> None:
    """Give plain names to what the older exporter names by scope (``/inner/l/Gemm_output_0``, ``onnx::Add_7``).

    The scope of a scripted module depends on what else the process compiled before; names in order of appearance do
    not. One new name per old one, everywhere, so sub-graphs still find the outer values they use.
    """
    messages, nodes = list(_messages(model.graph)), _nodes(model)
    taken = {name for node in nodes for name in node.output} | {part.name for part in messages if hasattr(part, "name")}
    renamed: dict[str, str] = {}
    for name, kind in _defined(messages):
        if name not in renamed and _SCOPED.search(name):
            number = len(renamed)
            while (plain := f"{kind}_{number}") in taken:
                number += 1
            taken.add(plain)
            renamed[name] = plain
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for part in messages:
        if isinstance(part, (onnx.NodeProto, onnx.TensorProto, onnx.ValueInfoProto)):
            part.name = renamed.get(part.name, part.name)


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node without a name that of its first output, made unique; in sub-graphs too.

    Whoever changes or compares graphs does this first, so that a node has one name in all that is made of its graph.
    TensorRT's parser would make up names of its own (``node_of_<output>``).
    """
    nodes = _nodes(model)
    taken = {node.name for node in nodes}
    for node in nodes:
        if not node.name:
            name = next((output for output in node.output if output), node.op_type)
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name


def name_constants(model: onnx.ModelProto) -> None:
    """Number the constants by first use, in a graph whose converter orders and names them as it happens to.

    tf2onnx 1.17 merges equal constants in the order of a set of objects, so that their names and order differ between
    processes, and nothing else does.
    """
    nodes = _nodes(model)
    used = {name: number for number, name in enumerate(dict.fromkeys(name for node in nodes for name in node.input))}
    fixed = {item.name for item in (*model.graph.input, *model.graph.output)}
    kept = sorted(
        (tensor for tensor in model.graph.initializer if tensor.name in used or tensor.name in fixed),
        key=lambda tensor: used.get(tensor.name, len(used)),
    )
    # with a slash, so that they get names of their own with the others of this kind
    renamed = {tensor.name: f"constant/{number}" for number, tensor in enumerate(kept) if tensor.name not in fixed}
    for tensor in kept:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in nodes:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del model.graph.initializer[:]
    model.graph.initializer.extend(copies)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """All nodes, those of sub-graphs too."""
    return [item for item in _messages(model.graph) if isinstance(item, onnx.NodeProto)]


def _defined(messages: list[Message]) -> Iterator[tuple[str, str]]:
    """Names of nodes, of their outputs, of tensors and of sub-graph inputs, each with what to call it."""
    for part in messages:
        if isinstance(part, onnx.NodeProto):
            yield part.name, f"node_{part.op_type}"
            yield from ((name, part.op_type) for name in part.output)
        elif isinstance(part, onnx.TensorProto):
            yield part.name, "constant"
        elif isinstance(part, onnx.ValueInfoProto):
            yield part.name, "value"


def _messages(parent: Message) -> Iterator[Message]:
    """A graph or function with its nodes, inputs, outputs, initializers and sub-graphs."""
    yield parent
    for field in ("input", "output", "initializer"):
        yield from (item for item in getattr(parent, field) if isinstance(item, Message))
    for node in getattr(parent, "node"):  # noqa: B009 - protobuf's base class does not declare it
        yield node
        for attribute in node.attribute:
            yield attribute
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                yield from _messages(graph)


def _simplified(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The simplified model, or the model as it is and why."""
    original = onnx.ModelProto()
    original.CopyFrom(model)
    try:
        slim = onnxslim.slim(model)
        _strip(slim)
        onnx.checker.check_model(slim, full_check=True)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in it, the graph as exported is still good
        return original, f"not simplified: onnxslim failed ({type(error).__name__}: {first_line(error)})"
    if _interface(slim) != _interface(original):
        return original, "not simplified: onnxslim changed the inputs or outputs"
    return slim, ""


def _interface(model: onnx.ModelProto) -> list[bytes]:
    return [item.SerializeToString(deterministic=True) for item in (*model.graph.input, *model.graph.output)]


def _write(model: onnx.ModelProto, out_dir: Path, external: bool) -> Path:
    place = out_dir / FILE
    if not external:
        place.write_bytes(model.SerializeToString(deterministic=True))
        return place
    place.mkdir()
    file = place / FILE
    onnx.save_model(model, str(file), save_as_external_data=True, location=_DATA, size_threshold=_EXTERNAL_FROM)
    for part in (file, place / _DATA):
        part.chmod(0o644)  # onnx writes external data as 0600, unreadable for the server's user
    return file


def _infer_and_check(file: Path) -> None:
    """Add inferred shapes to the written file and check it whole; by path, which also works over 2 GB."""
    try:
        onnx.shape_inference.infer_shapes_path(str(file), str(file), check_type=True, strict_mode=False, data_prop=True)
        model = onnx.load(str(file), load_external_data=False)
        file.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(file), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        what = "export: the exported graph is not valid ONNX"
        raise StageError(what, found=first_line(error), hint="try the other `exporter`, or another `opset`") from error
