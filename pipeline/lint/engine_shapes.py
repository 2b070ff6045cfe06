"""Lint rules on what a TensorRT engine takes and gives, by its sidecar, against the configuration.

Numbers such as server#4445 are issues of github.com/triton-inference-server/server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.values import NUMPY_DTYPES
from pipeline.lint.engine_sidecar import Engine, EngineRule, Range, Tensor
from pipeline.lint.model import (
    RTX_BACKEND,
    Finding,
    Model,
    backend_of,
    dims_text,
    enum_name,
    error,
    fed_inputs,
    model_dims,
    printable,
    warning,
)
from pipeline.servers.triton.config_pbtxt import data_type


def _wanted(model: Model, item: Any) -> list[int]:
    """The full shape of a configured tensor."""
    return [-1] * (model.config.max_batch_size > 0) + model_dims(item)


def profiles(model: Model, engine: Engine) -> Iterator[Finding]:
    """Every profile takes the batches and the sizes that the configuration promises."""
    plain = {item.name: item for item in _plain(model)}
    spans: dict[str, list[Range]] = {name: [] for name in plain}
    for index, profile in enumerate(engine.sidecar.profiles or ()):
        for name in sorted(profile.keys() - fed_inputs(model.config)):
            yield _unconfigured(model, engine, name)
        for name in sorted(profile.keys() & plain.keys()):
            what = f"profile {index}, input {printable(name)!r}"
            if len(profile[name].min) == len(_wanted(model, plain[name])):
                spans[name].append(profile[name])
                yield from _span(model, engine, what, plain[name], profile[name])
            else:
                yield _outside(model, engine, what, plain[name], profile[name])
    for name, found in sorted(spans.items()):
        if found:
            yield from _fixed(model, engine, plain[name], found)


def _plain(model: Model) -> list[Any]:
    """Inputs whose shapes profiles limit; a shape tensor's ranges are of values, a ragged input's of all requests."""
    return [item for item in model.config.input if not item.is_shape_tensor and not item.allow_ragged_batch]


def _span(model: Model, engine: Engine, what: str, item: Any, span: Range) -> Iterator[Finding]:
    at, largest = model.where(engine.path), model.config.max_batch_size
    if largest > 0 and span.min[0] > 1:
        yield error(
            at,
            "engine-profile-batch",
            f"{what} takes batches of {span.min[0]} and more, so a lone request is refused.",
            "build the engine with a smallest batch of 1",
        )
    if largest > 0 and span.max[0] < largest:
        yield error(
            at,
            "engine-profile-batch",
            f"{what} takes batches of up to {span.max[0]}, and max_batch_size is {largest} (server#4445).",
            f"build the engine for batches of up to {largest}, or lower max_batch_size",
        )
    dims = zip(span.min, span.max, _wanted(model, item), strict=True)
    if any(dim != -1 and not low <= dim <= high for low, high, dim in dims):
        yield _outside(model, engine, what, item, span)


def _outside(model: Model, engine: Engine, what: str, item: Any, span: Range) -> Finding:
    return error(
        model.where(engine.path),
        "engine-profile-range",
        f"{what} takes {dims_text(span.min)} to {dims_text(span.max)}; config.pbtxt gives it "
        f"{dims_text(_wanted(model, item))}{' with its batch dimension' * (model.config.max_batch_size > 0)}.",
        "build the engine for that shape, or write the dims it was built with",
    )


def _fixed(model: Model, engine: Engine, item: Any, spans: Sequence[Range]) -> Iterator[Finding]:
    """Sizes that the configuration leaves open and all profiles fix."""
    wanted, batched = _wanted(model, item), int(model.config.max_batch_size > 0)
    tight = list(wanted)
    for axis in range(batched, len(wanted)):
        sizes = {size for span in spans for size in (span.min[axis], span.max[axis])}
        if wanted[axis] == -1 and len(sizes) == 1:
            tight[axis] = sizes.pop()
    if tight != wanted:
        yield warning(
            model.where(engine.path),
            "engine-profile-fixed",
            f"input {printable(item.name)!r} is {dims_text(wanted[batched:])} by config.pbtxt, and the engine's "
            f"profiles take {dims_text(tight[batched:])} only.",
            f"write dims: {dims_text(tight[batched:])}, or build the engine for more sizes",
        )


def profile_index(model: Model, engine: Engine) -> Iterator[Finding]:
    """The profiles that instance groups name are in the engine."""
    if engine.sidecar.profiles is None:
        return
    count = max(1, len(engine.sidecar.profiles))  # an engine of fixed shapes has one of its own
    for group in model.config.instance_group:
        for profile in group.profile:
            if re.fullmatch(r"[0-9]+", profile) and (len(profile) > 9 or int(profile) >= count):
                yield error(
                    model.config_path,
                    "engine-profile-index",
                    f"an instance group names profile {printable(profile)}; {model.where(engine.path)} has {count}, "
                    "numbered from 0.",
                    "name profiles the engine has, or build it with more",
                )


def warmup(model: Model, engine: Engine) -> Iterator[Finding]:
    """Every instance has a profile that takes the warmup samples; the load fails with the first that is refused."""
    batched = int(model.config.max_batch_size > 0)
    plain = {item.name: item for item in _plain(model) if not item.HasField("reshape")}
    for sample in model.config.model_warmup if engine.sidecar.profiles else ():
        shapes = {
            name: [sample.batch_size] * batched + list(item.dims)
            for name, item in sample.inputs.items()
            if name in plain and len(item.dims) == len(plain[name].dims)  # else another rule's finding
        }
        if sample.batch_size and any(not _taken(usable, shapes) for usable in _usable(model, engine)):
            given = ", ".join(f"{printable(name)} {dims_text(shape)}" for name, shape in sorted(shapes.items()))
            yield error(
                model.config_path,
                "warmup-profile",
                f"warmup sample {printable(sample.name)!r} has {given}, and no profile of {model.where(engine.path)} "
                "that an instance group uses takes that; the model fails to load.",
                "warm up with a size the engine takes, or build it for that one",
            )


def _usable(model: Model, engine: Engine) -> Iterator[list[dict[str, Range]]]:
    """The profiles that each instance group's instances choose from, where the engine has them."""
    profiles = engine.sidecar.profiles or []
    for group in model.config.instance_group:
        named = set(group.profile or ["0"])  # Triton's tensorrt backend takes the first alone where none is named
        every = backend_of(model) == RTX_BACKEND
        if usable := [span for index, span in enumerate(profiles) if every or str(index) in named]:
            yield usable


def _taken(profiles: Sequence[Mapping[str, Range]], shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether one of the profiles takes all these shapes; inputs and ranks it does not have are other findings."""
    return any(
        all(
            low <= size <= high
            for name in profile.keys() & shapes.keys()
            for low, size, high in zip(profile[name].min, shapes[name], profile[name].max, strict=False)
        )
        for profile in profiles
    )


def tensors(model: Model, engine: Engine) -> Iterator[Finding]:
    """The engine's inputs and outputs are the configuration's."""
    config, sidecar = model.config, engine.sidecar
    if sidecar.inputs is not None:
        held = {item.name: item for item in sidecar.inputs}
        for name in sorted(held.keys() - fed_inputs(config)):
            yield _unconfigured(model, engine, name)
        yield from _absent(model, engine, "input", fed_inputs(config), held)
        for item in config.input:
            if item.name in held:
                what = f"input {printable(item.name)!r}"
                compared = not item.is_shape_tensor and not item.allow_ragged_batch
                yield from _tensor(model, engine, what, item, held[item.name], shape=compared)
    if sidecar.outputs is not None:
        held = {item.name: item for item in sidecar.outputs}
        scattered = {name for item in config.batch_output for name in item.target_name}
        yield from _absent(model, engine, "output", {item.name for item in config.output}, held)
        for item in config.output:
            if item.name in held:
                what = f"output {printable(item.name)!r}"
                compared = not item.is_shape_tensor and item.name not in scattered
                yield from _tensor(model, engine, what, item, held[item.name], shape=compared)


def _unconfigured(model: Model, engine: Engine, name: str) -> Finding:
    return error(
        model.where(engine.path),
        "engine-tensor-unknown",
        f"the engine needs the input {printable(name)!r}, which config.pbtxt does not have.",
        "add it to config.pbtxt",
    )


def _absent(model: Model, engine: Engine, kind: str, names: set[str], held: dict[str, Tensor]) -> Iterator[Finding]:
    for name in sorted(names - held.keys()):
        yield error(
            model.where(engine.path),
            "engine-tensor-unknown",
            f"config.pbtxt has the {kind} {printable(name)!r}; the engine has "
            f"{printable(', '.join(sorted(held)) or 'none')}.",
            f"use the engine's {kind} names",
        )


def _tensor(model: Model, engine: Engine, what: str, item: Any, held: Tensor, *, shape: bool) -> Iterator[Finding]:
    configured = enum_name(item, "data_type")
    if held.dtype in NUMPY_DTYPES and data_type(held.dtype) != configured:
        yield error(
            model.where(engine.path),
            "engine-data-type",
            f"{what} is {configured} in config.pbtxt and {data_type(held.dtype)} in the engine.",
            f"write data_type: {data_type(held.dtype)}",
        )
    if shape and held.shape is not None:
        yield from _shape(model, engine, what, item, [dim if isinstance(dim, int) else -1 for dim in held.shape])


def _shape(model: Model, engine: Engine, what: str, item: Any, found: list[int]) -> Iterator[Finding]:
    wanted, batched = _wanted(model, item), model.config.max_batch_size > 0
    if batched and found[:1] != [-1]:
        yield error(
            model.where(engine.path),
            "engine-batch-dimension",
            f"max_batch_size is {model.config.max_batch_size}, and {what} is {dims_text(found)} in the engine.",
            "build the engine with a dynamic first dimension on all inputs and outputs, or set max_batch_size to 0",
        )
    elif len(found) != len(wanted) or any(size not in (-1, dim) for size, dim in zip(found, wanted, strict=True)):
        yield error(
            model.where(engine.path),
            "engine-shape",
            f"{what} is {dims_text(wanted)} by config.pbtxt{' with its batch dimension' * batched} and "
            f"{dims_text(found)} in the engine.",
            f"write dims: {dims_text(found[batched:])}",
        )


SHAPE_RULES: tuple[EngineRule, ...] = (profiles, profile_index, warmup, tensors)
