"""What a server says about a model, against what it should say. Pure: messages in, differences out as text."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tritonclient.utils import np_to_triton_dtype

from pipeline.base.ports import Port, differences
from pipeline.base.triton_facts import NUMPY_TYPES
from pipeline.base.values import NUMPY_DTYPES, Array, Dim, Signature, TensorSpec
from pipeline.servers.triton.client.messages import IndexRow, ModelMetadata, TensorMetadata

_NOT_OURS = ("runtime",)  # names the file that runs the model: a shared library, or a stand-in's model.py


def as_served(array: Array, tensor: Any, *, batching: bool) -> Array:
    """An array in the shape clients see, which is the model's own unless the configuration has a ``reshape``.

    Args:
        array: as the model takes or gives it.
        tensor: the ModelInput or ModelOutput message.
        batching: whether dimension 0 is the batch (max_batch_size > 0) and so not among ``tensor.dims``.
    """
    if not tensor.HasField("reshape"):
        return array
    return array.reshape((*array.shape[:1], *tensor.dims) if batching else tuple(tensor.dims))


def metadata_differences(
    signature: Signature, config: Any, versions: Collection[int], metadata: ModelMetadata
) -> list[str]:
    """Where a model's metadata is not what the signature and the configuration say.

    Args:
        signature: the model's inputs and outputs, batch included.
        config: ModelConfig message as written to the repository.
        versions: those that should be served, all of them.
        metadata: what the server says.
    """
    found = []
    if config.platform and metadata.platform != config.platform:
        found.append(f"platform: expected {config.platform}, served {metadata.platform or 'none'}")
    served = sorted(metadata.versions, key=lambda text: (len(text), text))
    expected = [str(number) for number in sorted(versions)]
    if served != expected:
        found.append(f"versions: expected {', '.join(expected)}, served {', '.join(served) or 'none'}")
    batching = config.max_batch_size > 0
    for role, specs, tensors, messages in (
        ("input", signature.inputs, metadata.inputs, config.input),
        ("output", signature.outputs, metadata.outputs, config.output),
    ):
        dims = {item.name: tuple(item.dims) for item in messages if item.HasField("reshape")}
        wanted = [replace(spec, shape=_as_served(spec, dims.get(spec.name), batching=batching)) for spec in specs]
        found.extend(_tensor_differences(role, wanted, tensors))
    return found


def _as_served(spec: TensorSpec, dims: tuple[int, ...] | None, *, batching: bool) -> tuple[Dim, ...]:
    """The shape that clients see, which a ``reshape`` to ``dims`` makes another."""
    if dims is None:
        return spec.shape
    sizes = tuple("?" if size < 0 else size for size in dims)
    return (*spec.shape[:1], *sizes) if batching else sizes


def _tensor_differences(role: str, wanted: Sequence[TensorSpec], served: Sequence[TensorMetadata]) -> Iterator[str]:
    """Order is left out: clients send and ask by name."""
    by_name, specs = {tensor.name: tensor for tensor in served}, {spec.name: spec for spec in wanted}
    ports = [
        Port(name=item.name, dtype=NUMPY_TYPES.get(f"TYPE_{item.datatype}", item.datatype), shape=item.shape)
        for item in served
    ]
    found = {item.name: item for item in differences(ports, wanted, exact=True)}  # one line for each tensor
    for name, item in found.items():
        if item.kind == "missing":
            yield f"{role} {name}: expected, not served; served {', '.join(by_name)}"
        elif item.kind == "unknown":
            yield f"{role} {name}: served, not expected"
        else:
            sizes = [-1 if isinstance(size, str) else size for size in specs[name].shape]
            expected = f"{np_to_triton_dtype(NUMPY_DTYPES[specs[name].dtype])}{sizes}"
            yield f"{role} {name}: expected {expected}, served {by_name[name].datatype}{list(by_name[name].shape)}"


def config_differences(expected: Any, served: Any) -> list[str]:
    """Where the served ModelConfig differs from the one written, in the fields that the latter sets.

    Triton fills in defaults, so fields it adds say nothing. ``max_batch_size`` counts even when 0, which protobuf
    cannot tell from unset.
    """
    found = list(_message_differences(expected, served, ""))
    if expected.max_batch_size == 0 != served.max_batch_size:
        found.append(f"max_batch_size: expected 0, served {served.max_batch_size}")
    return found


def _message_differences(expected: Any, served: Any, path: str) -> Iterator[str]:
    for field, value in expected.ListFields():
        if not path and field.name in _NOT_OURS:
            continue
        yield from _field_differences(field, value, getattr(served, field.name), path + field.name)


def _field_differences(field: Any, value: Any, other: Any, path: str) -> Iterator[str]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key in value:
            if key not in other:
                yield f"{path}[{key}]: expected {_text(value[key])}, served none"
            else:
                yield from _value_differences(value[key], other[key], f"{path}[{key}]")
    elif hasattr(value, "add") or hasattr(value, "append"):  # repeated, of messages or of scalars
        if len(value) != len(other):
            yield f"{path}: expected {len(value)} entries, served {len(other)}"
            return
        for position, (item, served_item) in enumerate(zip(value, other, strict=True)):
            yield from _value_differences(item, served_item, f"{path}[{position}]")
    else:
        yield from _value_differences(value, other, path)


def _value_differences(value: Any, other: Any, path: str) -> Iterator[str]:
    if hasattr(value, "ListFields"):
        yield from _message_differences(value, other, path + ".")
    elif value != other:
        yield f"{path}: expected {_text(value)}, served {_text(other)}"


def _text(value: Any) -> str:
    return " ".join(str(value).split())


def index_differences(rows: Sequence[IndexRow], model: str, versions: Collection[int]) -> list[str]:
    """Expected versions that the repository index does not call READY, with its reasons."""
    states = {row.version: row for row in rows if row.name == model}
    found = []
    for version in sorted(versions):
        row = states.get(str(version))
        if row is None:
            found.append(f"version {version}: not in the index")
        elif row.state != "READY":
            found.append(f"version {version}: {row.state or 'no state'} {row.reason}".rstrip())
    return found
