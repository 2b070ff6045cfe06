"""Answers in labels against reference scores: which labels, in which order, how probable. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.base.values import Array, Tolerance
from pipeline.images.postprocessing import Postprocessing, probabilities

ROUNDING = 1e-6  # probabilities are given with six decimals


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What is right for one image.

    Attributes:
        probabilities: per class, float64.
        limits: how far each may be off.
        labels: per class.
    """

    probabilities: Array
    limits: Array
    labels: tuple[str, ...]


def references(scores: Array, how: Postprocessing, tolerance: Tolerance) -> list[Reference]:
    """Reference scores ``[samples, classes]`` as probabilities, with the tolerance of scores carried over to them.

    Where score i may be off by d_i, exp(s_i) is off by a factor of at most e^d_i, and softmax by at most
    e^(d_i + max d), since its sum is off by at most e^(max d).
    """
    wanted = scores.astype(np.float64)
    off = tolerance.allowed(wanted)
    if how.activation == "softmax":
        off = off + off.max(axis=-1, keepdims=True)
    exact = probabilities(wanted, how.activation)
    limits = off if how.activation == "none" else exact * np.expm1(np.minimum(off, 50.0))
    labels = how.labels or tuple(str(index) for index in range(scores.shape[-1]))
    return [
        Reference(probabilities=row, limits=limit + ROUNDING, labels=labels)
        for row, limit in zip(exact, np.minimum(limits, 1.0), strict=True)
    ]


def parsed(value: Any) -> list[tuple[str, float]]:
    """One element of the ``labels`` output; a ValueError where it is no JSON list of ``{"label", "probability"}``."""
    try:
        return listed(json.loads(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"no JSON list of labels with probabilities: {str(value)[:80]}") from error


def listed(rows: Any) -> list[tuple[str, float]]:
    """The same, once it is parsed."""
    try:
        return [(str(row["label"]), float(row["probability"])) for row in rows]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"no list of labels with probabilities: {str(rows)[:80]}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one image.

    Attributes:
        differences: where the answer is not what the reference says.
        max_abs: how far a probability is off, at most.
        first: whether the first label is the reference's.
    """

    differences: tuple[str, ...]
    max_abs: float
    first: bool


def judged(answer: Sequence[tuple[str, float]], reference: Reference, how: Postprocessing) -> Verdict:
    """Hold an answer against its reference.

    Each probability is within its limit, they descend, and no class that is missing should have been there. So the
    order is the reference's wherever its probabilities differ by more than the limits.
    """
    found, left, max_abs, right = [], dict(enumerate(reference.labels)), 0.0, reference.probabilities
    for label, probability in answer:
        own = {index: abs(probability - float(right[index])) for index, name in left.items() if name == label}
        if not own:
            found.append(f"label {label!r}: no class is called so, or it was told already")
            continue
        index = min(own, key=lambda each: own[each])  # several classes may bear one name
        del left[index]
        max_abs = max(max_abs, own[index])
        if not own[index] <= reference.limits[index]:
            expected, limit = right[index], reference.limits[index]
            found.append(f"label {label!r}: probability {probability:.6g}, expected {expected:.6g} ± {limit:.2g}")
    given = [probability for _, probability in answer]
    if given != sorted(given, reverse=True) or len(given) > how.top_k or any(one < how.threshold for one in given):
        found.append(f"expected at most {how.top_k} labels, descending, from {how.threshold} on; found {given}")
    least = given[-1] if len(given) >= how.top_k else how.threshold
    found += [
        f"label {name!r}: missing, its probability is {right[index]:.6g}"
        for index, name in left.items()
        if right[index] - reference.limits[index] > least + ROUNDING
    ]
    best = reference.labels[int(np.argmax(right))]
    return Verdict(differences=tuple(found), max_abs=max_abs, first=bool(answer) and answer[0][0] == best)
