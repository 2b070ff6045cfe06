"""Lint rules on what a TensorRT engine takes and gives, by its sidecar, against the configuration.

Numbers such as server#4445 are issues of github.com/triton-inference-server/server.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.values import NUMPY_DTYPES
from pipeline.lint.engine_sidecar import Engine, EngineRule, Range, Tensor
from pipeline.lint.model import RTX_BACKEND, Finding, Findings, Model, dims_text, enum_name, printable
from pipeline.servers.triton.config_pbtxt import data_type


def profiles(model: Model, engine: Engine) -> Findings:
    """Every profile takes the batches and the sizes that the configuration promises."""
    plain = {item.name: item for item in _plain(model)}
    spans: dict[str, list[Range]] = {name: [] for name in plain}
    for index, profile in enumerate(engine.sidecar.profiles or ()):
        for name in sorted(profile.keys() - model.fed_inputs):
            yield _unconfigured(model, engine, name)
        for name in sorted(profile.keys() & plain.keys()):
            what = f"profile {index}, input {printable(name)!r}"
            if len(profile[name].min) == len(model.shape(plain[name])):
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


def _span(model: Model, engine: Engine, what: str, item: Any, span: Range) -> Findings:
    at, largest = model.at(engine.path), model.config.max_batch_size
    if largest > 0 and span.min[0] > 1:
        reason = f"{what} takes batches of {span.min[0]} and more, so a lone request is refused."
        yield at.error("engine-profile-batch", reason, "build the engine with a smallest batch of 1")
    if largest > 0 and span.max[0] < largest:
        reason = f"{what} takes batches of up to {span.max[0]}, and max_batch_size is {largest} (server#4445)."
        fix = f"build the engine for batches of up to {largest}, or lower max_batch_size"
        yield at.error("engine-profile-batch", reason, fix)
    dims = zip(span.min, span.max, model.shape(item), strict=True)
    if any(dim != -1 and not low <= dim <= high for low, high, dim in dims):
        yield _outside(model, engine, what, item, span)


def _outside(model: Model, engine: Engine, what: str, item: Any, span: Range) -> Finding:
    reason = (
        f"{what} takes {dims_text(span.min)} to {dims_text(span.max)}; config.pbtxt gives it "
        f"{dims_text(model.shape(item))}{' with its batch dimension' * model.batched}."
    )
    fix = "build the engine for that shape, or write the dims it was built with"
    return model.at(engine.path).error("engine-profile-range", reason, fix)


def _fixed(model: Model, engine: Engine, item: Any, spans: Sequence[Range]) -> Findings:
    """Sizes that the configuration leaves open and all profiles fix."""
    wanted, batched = model.shape(item), model.batched
    tight = list(wanted)
    for axis in range(batched, len(wanted)):
        sizes = {size for span in spans for size in (span.min[axis], span.max[axis])}
        if wanted[axis] == -1 and len(sizes) == 1:
            tight[axis] = sizes.pop()
    if tight != wanted:
        reason = (
            f"input {printable(item.name)!r} is {dims_text(wanted[batched:])} by config.pbtxt, and the engine's "
            f"profiles take {dims_text(tight[batched:])} only."
        )
        fix = f"write dims: {dims_text(tight[batched:])}, or build the engine for more sizes"
        yield model.at(engine.path).warning("engine-profile-fixed", reason, fix)


def profile_index(model: Model, engine: Engine) -> Findings:
    """The profiles that instance groups name are in the engine."""
    if engine.sidecar.profiles is None:
        return
    count = max(1, len(engine.sidecar.profiles))  # an engine of fixed shapes has one of its own
    for group in model.config.instance_group:
        for profile in group.profile:
            if re.fullmatch(r"[0-9]+", profile) and (len(profile) > 9 or int(profile) >= count):
                reason = (
                    f"an instance group names profile {printable(profile)}; {model.where(engine.path)} has {count}, "
                    "numbered from 0."
                )
                yield model.error("engine-profile-index", reason, "name profiles the engine has, or build it with more")


def warmup(model: Model, engine: Engine) -> Findings:
    """Every instance has a profile that takes the warmup samples; the load fails with the first that is refused."""
    batched = model.batched
    plain = {item.name: item for item in _plain(model) if not item.HasField("reshape")}
    for sample in model.config.model_warmup if engine.sidecar.profiles else ():
        shapes = {
            name: [sample.batch_size] * batched + list(item.dims)
            for name, item in sample.inputs.items()
            if name in plain and len(item.dims) == len(plain[name].dims)  # else another rule's finding
        }
        if sample.batch_size and any(not _taken(usable, shapes) for usable in _usable(model, engine)):
            given = ", ".join(f"{printable(name)} {dims_text(shape)}" for name, shape in sorted(shapes.items()))
            reason = (
                f"warmup sample {printable(sample.name)!r} has {given}, and no profile of {model.where(engine.path)} "
                "that an instance group uses takes that; the model fails to load."
            )
            fix = "warm up with a size the engine takes, or build it for that one"
            yield model.error("warmup-profile", reason, fix)


def _usable(model: Model, engine: Engine) -> Iterator[list[dict[str, Range]]]:
    """The profiles that each instance group's instances choose from, where the engine has them."""
    profiles = engine.sidecar.profiles or []
    for group in model.config.instance_group:
        named = set(group.profile or ["0"])  # Triton's tensorrt backend takes the first alone where none is named
        every = model.backend == RTX_BACKEND
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


def tensors(model: Model, engine: Engine) -> Findings:
    """The engine's inputs and outputs are the configuration's."""
    config, sidecar = model.config, engine.sidecar
    ragged = {item.name for item in config.input if item.allow_ragged_batch}
    scattered = {name for item in config.batch_output for name in item.target_name}
    for kind, listed, configured, names, uncompared in (
        ("input", sidecar.inputs, config.input, model.fed_inputs, ragged),
        ("output", sidecar.outputs, config.output, {item.name for item in config.output}, scattered),
    ):
        held = {item.name: item for item in listed or ()}
        for name in sorted(held.keys() - names) if kind == "input" else ():
            yield _unconfigured(model, engine, name)
        for name in sorted(names - held.keys()) if listed is not None else ():
            reason = (
                f"config.pbtxt has the {kind} {printable(name)!r}; the engine has "
                f"{printable(', '.join(sorted(held)) or 'none')}."
            )
            yield model.at(engine.path).error("engine-tensor-unknown", reason, f"use the engine's {kind} names")
        for item in configured:
            if item.name in held:
                compared = not item.is_shape_tensor and item.name not in uncompared
                what = f"{kind} {printable(item.name)!r}"
                yield from _tensor(model, engine, what, item, held[item.name], shape=compared)


def _unconfigured(model: Model, engine: Engine, name: str) -> Finding:
    reason = f"the engine needs the input {printable(name)!r}, which config.pbtxt does not have."
    return model.at(engine.path).error("engine-tensor-unknown", reason, "add it to config.pbtxt")


def _tensor(model: Model, engine: Engine, what: str, item: Any, held: Tensor, *, shape: bool) -> Findings:
    configured = enum_name(item, "data_type")
    if held.dtype in NUMPY_DTYPES and data_type(held.dtype) != configured:
        reason = f"{what} is {configured} in config.pbtxt and {data_type(held.dtype)} in the engine."
        yield model.at(engine.path).error("engine-data-type", reason, f"write data_type: {data_type(held.dtype)}")
    if shape and held.shape is not None:
        yield from _shape(model, engine, what, item, [dim if isinstance(dim, int) else -1 for dim in held.shape])


def _shape(model: Model, engine: Engine, what: str, item: Any, found: list[int]) -> Findings:
    wanted, batched = model.shape(item), model.batched
    if batched and found[:1] != [-1]:
        reason = f"max_batch_size is {model.config.max_batch_size}, and {what} is {dims_text(found)} in the engine."
        fix = "build the engine with a dynamic first dimension on all inputs and outputs, or set max_batch_size to 0"
        yield model.at(engine.path).error("engine-batch-dimension", reason, fix)
    elif len(found) != len(wanted) or any(size not in (-1, dim) for size, dim in zip(found, wanted, strict=True)):
        reason = (
            f"{what} is {dims_text(wanted)} by config.pbtxt{' with its batch dimension' * batched} and "
            f"{dims_text(found)} in the engine."
        )
        yield model.at(engine.path).error("engine-shape", reason, f"write dims: {dims_text(found[batched:])}")


SHAPE_RULES: tuple[EngineRule, ...] = (profiles, profile_index, warmup, tensors)
