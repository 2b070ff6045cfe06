"""What is sent: batch sizes, concurrent mixes, wrong requests; and how classes come back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from pipeline.base.values import Array, GoldenSamples, Sample
from pipeline.data.samples import batches
from pipeline.servers.triton.client.messages import Class, Request, Statistics

_DYNAMIC_SIZES = 4
"""Largest first dimension tried where it is dynamic but no batch for Triton (max_batch_size 0)."""
_LARGEST_MIXED = 4
"""Most samples in one request of a concurrent mix: merging shows where requests are smaller than the limit."""

BURSTS = (64, 128, *(256,) * 18)
"""Sizes of bursts sent until requests merge, which depends on timing: for the fastest model tried, of 0.1 ms, half of
the bursts of 256 did."""


def batch_sizes(max_batch_size: int, *, joined: bool) -> tuple[int, ...]:
    """Batch 1, middle and max, without repeats; only 1 where samples cannot be joined."""
    largest = (max_batch_size or _DYNAMIC_SIZES) if joined else 1
    return tuple(sorted({1, max(1, largest // 2), largest}))


def mixed_sizes(count: int, max_batch_size: int, *, joined: bool, busy: bool = False) -> list[int]:
    """Sizes of ``count`` concurrent requests: 1, 2, 3, … in turn, at most half the limit so that two always merge.

    Args:
        count: how many.
        max_batch_size: the limit; 0 where Triton does not batch.
        joined: whether samples can be joined; without, every size is 1.
        busy: every fourth is of the greatest size: a model that answers faster than a client can ask merges nothing
            unless something keeps it busy while the others queue up.
    """
    largest = min(_LARGEST_MIXED, max(1, max_batch_size // 2)) if joined else 1
    sizes = [1 + position % largest for position in range(count)]
    if busy and joined:
        sizes[::4] = [max(1, max_batch_size)] * len(sizes[::4])
    return sizes


def burst(golden: GoldenSamples, sizes: Sequence[int]) -> list[Sample]:
    """One batch per size, neighbours differing, taken from the two commonest input shapes.

    The first half is of the one shape and the second half of the other: Triton merges only neighbours of equal shape.
    """
    groups = _by_shape(golden)[:2]
    half = -(-len(sizes) // len(groups))
    chosen: list[Sample] = []
    for position, group in enumerate(groups):
        own = sizes[position * half : (position + 1) * half]
        ready = {size: list(islice(batches(group, size), len(own))) for size in set(own)}
        chosen += [ready[size][turn % len(ready[size])] for turn, size in enumerate(own)]
    return chosen


def _by_shape(golden: GoldenSamples) -> list[GoldenSamples]:
    groups: dict[Any, list[Sample]] = {}
    for sample in golden.samples:
        groups.setdefault(tuple(sorted((name, array.shape) for name, array in sample.inputs.items())), []).append(
            sample
        )
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [replace(golden, samples=tuple(group)) for group in ordered]


def repeated(sample: Sample, size: int) -> Sample:
    """The first sample of a batch, ``size`` times along dimension 0."""
    return Sample(
        inputs={name: np.repeat(array[:1], size, axis=0) for name, array in sample.inputs.items()},
        outputs={name: np.repeat(array[:1], size, axis=0) for name, array in sample.outputs.items()},
    )


def wrong_requests(good: Request, dims: dict[str, list[int]]) -> list[tuple[str, Request]]:
    """Requests a server must refuse, each with the name of what is wrong in it.

    Args:
        good: a request it answers.
        dims: per input, the sizes of the configuration's ``dims``; -1 is dynamic.
    """
    name, array = next(iter(good.inputs.items()))
    other_dtype = np.int32 if array.dtype == np.float32 else np.float32
    wrong = [
        ("model name", replace(good, model=f"{good.model}_absent")),
        ("input name", _with(good, name, f"{name}_absent", array)),
        ("dtype", _with(good, name, name, array.astype(other_dtype))),
        ("rank", _with(good, name, name, array[..., np.newaxis])),
    ]
    for name, array in good.inputs.items():
        fixed = [axis for axis, size in enumerate(dims[name]) if size > 0]
        if fixed:
            axis = array.ndim - len(dims[name]) + fixed[0]
            longer = np.concatenate([array, np.take(array, [0], axis=axis)], axis=axis)
            return [*wrong, ("dimension", _with(good, name, name, longer))]
    return wrong


def _with(request: Request, old: str, new: str, array: Array) -> Request:
    inputs = {
        (new if name == old else name): (array if name == old else value) for name, value in request.inputs.items()
    }
    return replace(request, inputs=inputs)


def class_differences(
    rows: Sequence[Sequence[Class]], scores: Array, labels: Sequence[str], *, limit: Array
) -> list[str]:
    """Where classification answers disagree with reference scores or with the labels.

    Args:
        rows: per sample, the classes best first.
        scores: reference scores, shape [samples, classes].
        labels: names in index order.
        limit: largest allowed difference per score, shape [samples, classes]; also what counts as a tie for first.
    """
    found = []
    for position, row in enumerate(rows):
        for item in row:
            expected = labels[item.index] if item.index < len(labels) else ""
            if item.label != expected:
                found.append(f"sample {position}: index {item.index} is labelled {item.label!r}, expected {expected!r}")
            if not abs(item.score - scores[position, item.index]) <= limit[position, item.index]:
                expected_score = scores[position, item.index]
                found.append(
                    f"sample {position}: index {item.index} scores {item.score:.6g}, expected {expected_score:.6g}"
                )
        best = int(np.argmax(scores[position]))
        first = row[0].index
        if scores[position, best] - scores[position, first] > 2 * limit[position, best]:
            name = labels[best] if best < len(labels) else ""
            found.append(f"sample {position}: best is {first}:{row[0].label}, expected {best}:{name}")
    return found


def merged(before: Statistics, after: Statistics, largest: int) -> str:
    """How requests were merged between two readings of the counters; empty when they were not.

    Args:
        before: counters before the requests.
        after: counters after them.
        largest: samples in the largest single request.
    """
    requests, executions = after.requests - before.requests, after.executions - before.executions
    ran = {size for size, count in after.batch_sizes.items() if count > before.batch_sizes.get(size, 0)}
    if executions >= requests and max(ran, default=0) <= largest:
        return ""
    return f"{requests} requests ran as {executions} batches, the largest of {max(ran, default=0)} samples"
