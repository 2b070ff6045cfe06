"""Turns answers into verdicts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline.base.values import Sample, Tensors, Tolerance
from pipeline.proof.comparison import compare, with_samples
from pipeline.proof.failures import RefusedError, WrongError


@dataclass
class Tally:
    """Sums over the compared answers of one check.

    Attributes:
        max_abs: greatest absolute difference seen.
        judged: samples of which the arg-max could be compared.
        agreed: how many of them had the reference's.
    """

    max_abs: float = 0.0
    judged: int = 0
    agreed: float = 0.0


class Judge:
    """Holds answers against references, within a tolerance.

    Args:
        tolerance: how close an answer must be.
        batched: dimension 0 of every tensor is the samples.
    """

    def __init__(self, tolerance: Tolerance, *, batched: bool) -> None:
        self._batched, self._min_top1 = batched, tolerance.min_top1
        self._each = replace(tolerance, min_top1=0.0)

    def compare(self, answer: Tensors | RefusedError, sample: Sample, where: str, tally: Tally) -> None:
        """Hold one answer against its reference; arg-max agreement is only counted, since one sample is all or nothing.

        Raises:
            WrongError: with what was expected and what came.
            RefusedError: the answer was an error.
        """
        if isinstance(answer, RefusedError):
            raise answer
        actual, expected = (with_samples(side, batched=self._batched) for side in (answer, sample.outputs))
        verdict = compare(actual, expected, self._each)
        if not verdict.passed:
            furthest = first_wrong(actual, expected)
            raise WrongError(f"{where}: {verdict.reason}" + (f"; {furthest}" if furthest else ""))
        tally.max_abs = max(tally.max_abs, verdict.max_abs)
        if verdict.top1 is not None:
            size = len(next(iter(expected.values())))
            tally.judged += size
            tally.agreed += verdict.top1 * size

    def agreement(self, tally: Tally) -> None:
        """Judge the arg-max over all samples of a check; a WrongError where it agrees too rarely."""
        if tally.judged and tally.agreed / tally.judged < self._min_top1:
            share = tally.agreed / tally.judged
            raise WrongError(f"arg-max agrees for {share:.2%} of {tally.judged} samples, under {self._min_top1:.2%}")


def first_wrong(actual: Tensors, expected: Tensors) -> str:
    """The element that is furthest off, with what was expected and what came; empty where shapes or names differ."""
    worst, text = -1.0, ""
    for name, reference in expected.items():
        answer = actual.get(name)
        if answer is None or answer.shape != reference.shape or not reference.size:
            continue
        error = np.abs(answer.astype(np.float64) - reference.astype(np.float64))
        error = np.where(np.isnan(error), np.inf, error)
        place = np.unravel_index(int(np.argmax(error)), error.shape)
        if error[place] > worst:
            worst = float(error[place])
            where = ", ".join(str(int(axis)) for axis in place)
            text = f"{name}[{where}]: expected {reference[place]:.6g}, got {answer[place]:.6g}"
    return text
