"""Lint rules on batching, queues, sequences and the response cache (core, ValidateModelConfig)."""

from __future__ import annotations

from typing import Any

from pipeline.base.triton_facts import FALSE_TRUE
from pipeline.lint.model import Finding, Findings, Model, Rule, below, enum_name, is_regular, printable

_CORRID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def max_batch_size(model: Model) -> Findings:
    """Zero or a positive number."""
    if model.config.max_batch_size < 0:
        reason = f"max_batch_size is {model.config.max_batch_size}."
        fix = "write 0 for a model without a batch dimension, else the largest batch"
        yield model.error("max-batch-size-negative", reason, fix)


def dynamic_batching(model: Model) -> Findings:
    """Batches can only be made where there is a batch dimension, and only up to its limit."""
    if not model.config.HasField("dynamic_batching"):
        return
    if model.config.max_batch_size == 0:
        reason = "dynamic_batching does nothing while max_batch_size is 0."
        yield model.warning("dynamic-batching-without-batch", reason, "set max_batch_size, or remove dynamic_batching")
    yield from _preferred(model, model.config.dynamic_batching.preferred_batch_size, "dynamic_batching")


def _preferred(model: Model, sizes: Any, where: str) -> Findings:
    largest = model.config.max_batch_size
    if wrong := [size for size in sizes if not 1 <= size <= largest]:
        reason = f"{where} prefers batch sizes {wrong}; each must be from 1 to max_batch_size {largest}."
        fix = "lower them, raise max_batch_size, or leave preferred_batch_size out"
        yield model.error("preferred-batch-size", reason, fix)


def priorities(model: Model) -> Findings:
    """Priority levels run from 1 to ``priority_levels``."""
    batching = model.config.dynamic_batching
    levels = batching.priority_levels
    if not levels:
        if batching.default_priority_level or batching.priority_queue_policy:
            reason = "priorities are configured, but priority_levels is 0, so there are none."
            fix = "set priority_levels, or remove default_priority_level and priority_queue_policy"
            yield model.warning("priority-levels", reason, fix)
        return
    if not 1 <= batching.default_priority_level <= levels:
        reason = (
            f"default_priority_level is {batching.default_priority_level}; it must be from 1 to priority_levels "
            f"{levels}."
        )
        yield model.error("priority-levels", reason, "set default_priority_level")
    if outside := sorted(level for level in batching.priority_queue_policy if not 1 <= level <= levels):
        reason = f"priority_queue_policy has levels {outside}; they run from 1 to priority_levels {levels}."
        yield model.error("priority-levels", reason, "correct the keys, or raise priority_levels")


def preserve_ordering(model: Model) -> Findings:
    """Order cannot be kept where requests may overtake each other."""
    batching = model.config.dynamic_batching
    if not batching.preserve_ordering:
        return
    if batching.priority_levels > 1:
        reason = "preserve_ordering allows a single priority level only."
        yield model.error("preserve-ordering", reason, "remove preserve_ordering, or the priorities")
    if any(policy.default_timeout_microseconds for policy in _delaying(model)):
        reason = "a queue policy with timeout_action DELAY breaks the order that preserve_ordering promises."
        yield model.error("preserve-ordering", reason, "write timeout_action: REJECT, or remove preserve_ordering")


def queue_policy(model: Model) -> Findings:
    """A timeout that never comes."""
    for policy in _delaying(model):
        if not policy.default_timeout_microseconds and not policy.allow_timeout_override:
            reason = "timeout_action DELAY has no effect: no timeout is set and none may come with a request."
            fix = "set default_timeout_microseconds, or remove timeout_action"
            yield model.warning("queue-policy-without-timeout", reason, fix)


def _delaying(model: Model) -> list[Any]:
    """The queue policies that let late requests wait."""
    batching = model.config.dynamic_batching
    policies = (batching.default_queue_policy, *batching.priority_queue_policy.values())
    return [policy for policy in policies if enum_name(policy, "timeout_action") == "DELAY"]


def response_cache(model: Model) -> Findings:
    """Triton's core refuses the cache for decoupled and for sequence models."""
    config = model.config
    if not config.response_cache.enable:
        return
    for kind, found in (
        ("a decoupled model", config.model_transaction_policy.decoupled),
        ("a model with sequence_batching", config.HasField("sequence_batching")),
    ):
        if found:
            reason = f"Triton has no response cache for {kind} and refuses the model."
            yield model.error("response-cache-unsupported", reason, "remove response_cache")


def sequence_controls(model: Model) -> Findings:
    """Control tensors: a name, one kind each, and false/true values for boolean ones."""
    tensors, kinds = set(), set()
    for item in model.config.sequence_batching.control_input:
        if not item.name or item.name in tensors or not item.control:
            yield _control(model, f"the control tensor {printable(item.name)!r} has no name of its own or no control.")
        tensors.add(item.name)
        for control in item.control:
            kind = enum_name(control, "kind")
            if kind in kinds:
                yield _control(model, f"{kind} is given to more than one tensor.")
            kinds.add(kind)
            yield from _control_values(model, control, kind)


def _control(model: Model, reason: str) -> Finding:
    return model.error(
        "sequence-control",
        reason,
        "give each control_input one name, one control kind and, unless it is CORRID, two values such as "
        "int32_false_true: [ 0, 1 ]",
    )


def _control_values(model: Model, control: Any, kind: str) -> Findings:
    given = [name for name in FALSE_TRUE if len(getattr(control, name))]
    if kind == "CONTROL_SEQUENCE_CORRID":
        if given:
            yield _control(model, f"{kind} carries the sequence's id, and takes no {given[0]}.")
        if enum_name(control, "data_type") not in _CORRID_TYPES:
            reason = f"{kind} has data_type {enum_name(control, 'data_type')}."
            yield model.error("sequence-correlation-id", reason, f"use one of {', '.join(_CORRID_TYPES)}")
    elif len(given) != 1:
        yield _control(model, f"{kind} needs exactly one of {', '.join(FALSE_TRUE)}; it has {len(given)}.")
    elif len(getattr(control, given[0])) != 2:
        yield _control(model, f"{kind}: {given[0]} has {len(getattr(control, given[0]))} entries, not 2.")


def sequence_strategy(model: Model) -> Findings:
    """The two strategies' own limits."""
    batching = model.config.sequence_batching
    yield from _preferred(model, batching.oldest.preferred_batch_size, "sequence_batching")
    if not 0 <= batching.direct.minimum_slot_utilization <= 1:
        reason = f"minimum_slot_utilization is {batching.direct.minimum_slot_utilization:g}; it is a share from 0 to 1."
        yield model.error("sequence-slot-utilization", reason, "write a value from 0 to 1")


def sequence_states(model: Model) -> Findings:
    """Implicit state: tensor names, types, and files for the first value."""
    for state in model.config.sequence_batching.state:
        if not state.input_name or not state.output_name or enum_name(state, "data_type") == "TYPE_INVALID":
            reason = "a sequence state lacks its input_name, output_name or data_type."
            yield model.error("sequence-state", reason, "give all three, and dims")
        for first in state.initial_state:
            folder = model.path / "initial_state"
            path = below(folder, first.data_file) if first.data_file else folder
            if path is None or (first.data_file and not is_regular(path)):
                yield model.at(path or folder).error(
                    "initial-state-file-missing",
                    f"the initial state reads {printable(first.data_file)!r} in initial_state/, which is not there.",
                    "add the file, or use zero_data: true",
                )


SCHEDULING_RULES: tuple[Rule, ...] = (
    max_batch_size, dynamic_batching, priorities, preserve_ordering, queue_policy, response_cache, sequence_controls,
    sequence_strategy, sequence_states,
)  # fmt: skip
