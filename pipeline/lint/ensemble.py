"""Lint rules on ensembles: the graph of tensors, and agreement with the member models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.base.model_config import served_versions
from pipeline.lint.model import Finding, Findings, Model, Rule, dims_text, enum_name, printable


def platform(model: Model) -> Findings:
    """An ensemble has the platform ``ensemble``, no backend, and steps."""
    config = model.config
    fix = 'write platform: "ensemble" and leave the backend out'
    if config.backend == "ensemble":
        yield model.error("ensemble-platform", "ensemble is a platform, not a backend.", fix)
    if not model.is_ensemble:
        return
    if config.platform != "ensemble" or config.backend not in ("", "ensemble"):
        found = f"{printable(config.platform)!r} and {printable(config.backend)!r}"
        reason = f"an ensemble has the platform ensemble and no backend; found {found}."
        yield model.error("ensemble-platform", reason, fix)
    if not config.ensemble_scheduling.step:
        reason = "an ensemble needs ensemble_scheduling with at least one step."
        yield model.error("ensemble-step", reason, "write ensemble_scheduling { step [ … ] }")


def forbidden_fields(model: Model) -> Findings:
    """An ensemble runs nothing itself."""
    given = {field.name for field, _ in model.config.ListFields()} if model.is_ensemble else ()
    for name in ("instance_group", "optimization", "model_warmup"):
        if name in given:
            reason = f"Triton refuses {name} in an ensemble."
            yield model.error("ensemble-field", reason, f"move {name} to the member models")


def steps(model: Model) -> Findings:
    """Every step names a model and maps inputs and outputs."""
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        if absent := [name for name in ("model_name", "input_map", "output_map") if not getattr(step, name)]:
            reason = f"step {index} has no {' and no '.join(absent)}."
            yield model.error("ensemble-step", reason, "give each step model_name, input_map and output_map")


def tensor_flow(model: Model) -> Findings:
    """Every tensor is written once before it is read, and leads somewhere (ValidateEnsembleSchedulingConfig)."""
    config = model.config
    graph = config.ensemble_scheduling.step
    if not graph:
        return
    given, wanted = {item.name for item in config.input}, {item.name for item in config.output}
    written = Counter(name for step in graph for name in step.output_map.values())
    read = {name for step in graph for name in step.input_map.values()}

    def flaw(name: str, reason: str, fix: str) -> Finding:
        return model.error("ensemble-tensor", f"ensemble tensor {printable(name)!r} {reason}.", fix)

    for name in sorted(name for name, count in written.items() if count > 1 or name in given):
        yield flaw(name, "is written more than once, or is also an input", "give each output_map its own tensor name")
    for name in sorted(read - written.keys() - given):
        yield flaw(name, "is read by a step, and nothing writes it", "correct the name in input_map, or add the input")
    for name in sorted(given - read):
        yield flaw(name, "is an input that no step reads", "map it in a step's input_map, or remove the input")
    for name in sorted(wanted - written.keys() - given):
        yield flaw(name, "is an output that no step writes", "map it in a step's output_map")
    for name in sorted(written.keys() - read - wanted):
        yield flaw(name, "is written and never used", "remove it from output_map, or make it an output")
    stuck = _never_ready(graph, given, read | written.keys())
    if stuck and not read - written.keys() - given:
        yield flaw(stuck[0], f"depends on itself through {printable(', '.join(stuck))}", "break the cycle")


def _never_ready(graph: Any, given: set[str], every: set[str]) -> list[str]:
    ready, waiting = set(given), list(graph)
    while True:
        runnable = [step for step in waiting if set(step.input_map.values()) <= ready]
        if not runnable:
            return sorted(every - ready)
        waiting = [step for step in waiting if step not in runnable]
        ready.update(name for step in runnable for name in step.output_map.values())


def members(model: Model) -> Findings:
    """Member models exist, in the versions asked for, and take batches as large."""
    batch = model.config.max_batch_size
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        if not step.model_name:
            continue
        member = model.others.get(step.model_name)
        called = f"step {index}: the model {printable(step.model_name)!r}"
        if member is None:
            reason = f"{called} is not in this repository."
            yield model.error("ensemble-member-missing", reason, "add the model, or correct model_name")
            continue
        wanted = step.model_version
        if wanted > 0 and wanted not in member.versions:
            present = ", ".join(str(number) for number in member.versions) or "none"
            reason = f"{called} has no version {wanted} (present: {present})."
            fix = "use model_version: -1 for the latest, or a version that exists"
            yield model.error("ensemble-member-version", reason, fix)
        elif wanted > 0 and member.config and wanted not in served_versions(member.config, member.versions):
            reason = f"{called} has version {wanted}, and its version_policy does not load it."
            fix = f"let the member's version_policy load version {wanted}, or use model_version: -1"
            yield model.error("ensemble-member-version", reason, fix)
        if member.config is not None and 0 < member.config.max_batch_size < batch:
            reason = f"{called} takes batches up to {member.config.max_batch_size}; the ensemble allows {batch}."
            fix = f"set the ensemble's max_batch_size to {member.config.max_batch_size} or lower"
            yield model.error("ensemble-batch-size", reason, fix)


def member_tensors(model: Model) -> Findings:
    """Maps name the members' tensors, and types and shapes agree along every tensor (ensemble_utils.cc)."""
    ends: dict[str, tuple[str, Any, Model]] = {}
    for item in (*model.config.input, *model.config.output):
        ends[item.name] = ("the ensemble", item, model)
    for index, step in enumerate(model.config.ensemble_scheduling.step):
        member = model.others.get(step.model_name)
        if member is None or member.config is None or member is model:
            continue
        called = f"step {index}"
        for kind, mapping in (("output", step.output_map), ("input", step.input_map)):
            configured = {item.name: item for item in getattr(member.config, kind)}
            yield from _mapped(model, member, called, kind, mapping, configured)
            for name, tensor in sorted(mapping.items()):
                if name in configured:
                    end = (f"{called} ({printable(member.name)})", configured[name], member)
                    yield from _agree(model, tensor, ends.setdefault(tensor, end), end)


def _mapped(model: Model, member: Model, called: str, kind: str, mapping: Any, configured: dict[str, Any]) -> Findings:
    for name in sorted(set(mapping) - configured.keys()):
        yield model.error(
            "ensemble-map",
            f"{called} maps the {kind} {printable(name)!r}, which the model {printable(member.name)!r} does not have.",
            f"use one of {printable(', '.join(sorted(configured)) or 'its tensors')}",
        )
    if kind == "input":
        for name in sorted(key for key, item in configured.items() if key not in mapping and not item.optional):
            reason = f"{called} gives nothing to the input {printable(name)!r} of the model {printable(member.name)!r}."
            yield model.error("ensemble-map", reason, "add it to the step's input_map")


def _agree(model: Model, tensor: str, one: tuple[str, Any, Model], other: tuple[str, Any, Model]) -> Findings:
    types = [enum_name(end[1], "data_type") for end in (one, other)]
    if types[0] != types[1]:
        reason = f"tensor {printable(tensor)!r} is {types[0]} for {one[0]} and {types[1]} for {other[0]}."
        fix = "make both ends one type, or put a converting model between them"
        yield model.error("ensemble-data-type", reason, fix)
    plain = [_dims(end) for end in (one, other)]
    full = [[-1] * end[2].batched + dims for end, dims in zip((one, other), plain, strict=True)]
    if not _matches(*plain) and not _matches(*full):
        reason = (
            f"tensor {printable(tensor)!r} is {dims_text(full[0])} for {one[0]} and {dims_text(full[1])} "
            f"for {other[0]}."
        )
        yield model.error("ensemble-shape", reason, "make the dims of both ends agree, with -1 for sizes that vary")


def _dims(end: tuple[str, Any, Model]) -> list[int]:
    # An ensemble's own reshape is what its members see; a member's own is its private matter.
    _, item, owner = end
    reshaped = owner.is_ensemble and item.HasField("reshape")
    return list(item.reshape.shape if reshaped else item.dims)


def _matches(one: Sequence[int], other: Sequence[int]) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def cycles(model: Model) -> Findings:
    """An ensemble that contains itself, through others too."""
    pending, seen = [model], set()
    while pending:
        current = pending.pop()
        for step in current.config.ensemble_scheduling.step if current.config is not None else ():
            if step.model_name == model.name:
                reason = f"the ensemble contains itself, through {printable(current.name)!r}."
                yield model.error("ensemble-cycle", reason, "remove the step that leads back")
                return
            if step.model_name in model.others and step.model_name not in seen:
                seen.add(step.model_name)
                pending.append(model.others[step.model_name])


ENSEMBLE_RULES: tuple[Rule, ...] = (platform, forbidden_fields, steps, tensor_flow, members, member_tensors, cycles)
