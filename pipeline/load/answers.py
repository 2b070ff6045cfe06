"""Is this the answer to that question, and not to another? Pure.

Distances are shares of the greatest magnitude in an output: what reduced precision and other batch sizes change is
proportional to that. Every input whose answer could be taken for another's is left out before the load starts, so that
an answer near enough to its own cannot be near to another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.base.values import Array, Tensors

_TOLERANCE = 1e-2
"""Farthest an answer under load may be from the one given alone. TF32, fp16 and int8 kernels chosen by batch size
differ by up to some thousandths."""
_APART = {np.dtype(np.float16): 1e-2}
_APART_OTHERWISE = 1e-3
"""Nearest two answers may be, by dtype, that are to be told apart; about twice what batching makes float16 and float32
answers differ."""
_ROUNDING = 1e-3  # by which probabilities may add up to more than 1


def distance(actual: Tensors, expected: Tensors) -> float:
    """How far two answers are from each other: the farthest of their outputs; infinite if they differ in kind.

    Floats are as far apart as their greatest difference, over the expected tensor's greatest magnitude; NaN and
    infinities must stand in the same places. Text that is JSON is compared by its numbers, labels with probabilities by
    label; anything else is equal or infinitely far.
    """
    if set(actual) != set(expected):
        return math.inf
    return max((_distance(actual[name], array) for name, array in expected.items()), default=0.0)


def _distance(actual: Array, expected: Array) -> float:
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return math.inf
    if np.array_equal(actual, expected):  # nearly always, and quicker
        return 0.0
    if expected.dtype.kind == "f":
        return _of_floats(actual.astype(np.float64), expected.astype(np.float64))
    if expected.dtype.kind != "O":
        return math.inf
    pairs = zip(actual.reshape(-1), expected.reshape(-1), strict=True)
    return max((0.0 if one == other else _of_texts(one, other) for one, other in pairs), default=0.0)


def _of_floats(actual: Array, expected: Array) -> float:
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True) or not np.isfinite(actual[finite]).all():
        return math.inf
    if not finite.any():
        return 0.0
    difference = float(np.abs(actual[finite] - expected[finite]).max())
    scale = float(np.abs(expected[finite]).max())
    return difference / scale if scale else (math.inf if difference else 0.0)


def _of_texts(actual: bytes, expected: bytes) -> float:
    try:
        found, wanted = json.loads(actual), json.loads(expected)
        one, other = _ranking(found), _ranking(wanted)
        if one is not None and other is not None:
            return _of_rankings(one, other)
        leaves, expected_leaves = dict(_leaves(found)), dict(_leaves(wanted))
    except (ValueError, RecursionError, OverflowError):  # no JSON, or of a depth or with integers beyond all use
        return math.inf
    kept, wanted = ({name: float if isinstance(value, float) else value for name, value in side.items()}
                    for side in (leaves, expected_leaves))  # fmt: skip
    if kept != wanted:  # everything but numbers must be equal
        return math.inf
    numbers = [name for name, value in expected_leaves.items() if isinstance(value, float)]
    return _of_floats(*(np.asarray([values[name] for name in numbers]) for values in (leaves, expected_leaves)))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document by its path, numbers as floats, objects and lists as their kind."""
    if isinstance(value, (dict, list)):
        yield path, type(value).__name__
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(item, f"{path}/{key}")
    else:
        yield path, float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _ranking(value: Any) -> dict[str, float] | None:
    """Probability by label, of the answer that a pipeline's postprocessing gives; None for anything else."""
    if not isinstance(value, list) or not all(isinstance(row, dict) and "label" in row for row in value):
        return None
    try:
        return {str(row["label"]): float(row["probability"]) for row in value}
    except (KeyError, TypeError, ValueError):
        return None


def _of_rankings(actual: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """Greatest difference of a label's probability, over the greatest one.

    Labels of nearly equal probability may change places, and the last may give way to another: a label that was left
    out counts as the most it can have had, the least of those that were not, or what they leave of 1. Of other scores
    nothing is known but that the least of those that were not left out is as great.
    """
    actual, odd = _finite(actual)
    expected, expected_odd = _finite(expected)
    if odd != expected_odd:
        return math.inf
    values = [*actual.values(), *expected.values()]
    sums = [sum(scores.values()) for scores in (actual, expected)]
    shares = min(values, default=0.0) >= 0.0 and max(sums) <= 1.0 + _ROUNDING
    differences = [abs(actual[label] - expected[label]) for label in actual.keys() & expected.keys()]
    for one, other in ((actual, expected), (expected, actual)):
        for label in one.keys() - other.keys():
            most = [*other.values(), *([max(0.0, 1.0 - sum(other.values()))] if shares else [])]
            differences.append(max(0.0, one[label] - min(most)) if most else math.inf)
    return max(differences, default=0.0) / (max(map(abs, values), default=0.0) or 1.0)


def _finite(scores: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
    """The finite scores, and in words the others, which must be the same."""
    finite = {label: score for label, score in scores.items() if math.isfinite(score)}
    return finite, {label: str(score) for label, score in scores.items() if label not in finite}


def _apart(expected: Tensors) -> float:
    return max((_APART.get(array.dtype, _APART_OTHERWISE) for array in expected.values()), default=0.0)


def distinct(answers: Sequence[Tensors]) -> list[int]:
    """Numbers of the answers that can be told from each other, in order; the first of those that cannot is kept."""
    chosen: list[int] = []
    for number, answer in enumerate(answers):
        if all(distance(answer, answers[other]) > _apart(answer) for other in chosen):
            chosen.append(number)
    return chosen


class Judge:
    """Holds answers given under load against those, all distinct, that the same questions got alone."""

    def __init__(self, answers: Sequence[Tensors]) -> None:
        self._answers = answers

    def fault(self, question: int, answer: Tensors) -> str:
        """What is wrong with an answer; empty when it is this question's own, and no other's."""
        own = distance(answer, self._answers[question])
        if own <= _apart(answer) / 2:  # every other answer is farther away: they lie twice as far apart
            return ""
        others = (distance(answer, other) for number, other in enumerate(self._answers) if number != question)
        nearest = min(others, default=math.inf)
        if nearest <= min(own, _TOLERANCE):
            return "answered with the result of another request"
        if own > _TOLERANCE:
            return "answered otherwise than when asked alone, and as no other input was"
        return ""
