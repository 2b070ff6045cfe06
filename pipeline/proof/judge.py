"""Turns golden samples into requests, and answers into verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.base.values import Array, Sample, Tensors
from pipeline.proof.comparison import compare
from pipeline.servers.triton.client.messages import RefusedError, Request
from pipeline.servers.triton.proof import served, traffic
from pipeline.servers.triton.proof.expectation import Expectation


class WrongError(Exception):
    """A check has failed; the text is its detail."""


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
    """Asks and judges as one expectation says.

    Args:
        expectation: the model, its shapes and its tolerance.
    """

    def __init__(self, expectation: Expectation) -> None:
        self._expectation = expectation
        self._batched = expectation.signature.batch is not None
        self._each = replace(expectation.tolerance, min_top1=0.0)
        self._inputs: Mapping[str, Any] = {item.name: item for item in expectation.config.input}
        self._reshaped = {item.name for item in expectation.config.output if item.HasField("reshape")}

    def request(self, sample: Sample, version: str) -> Request:
        """A request for all outputs of ``sample``; an empty version leaves the choice to the server."""
        batching = self._expectation.max_batch_size > 0
        inputs = {
            name: served.as_served(array, self._inputs[name], batching=batching) if name in self._inputs else array
            for name, array in sample.inputs.items()
        }
        names = tuple(spec.name for spec in self._expectation.signature.outputs)
        return Request(model=self._expectation.model, version=version, inputs=inputs, outputs=names)

    def compare(self, answer: Tensors | RefusedError, sample: Sample, where: str, tally: Tally) -> None:
        """Hold one answer against its reference; arg-max agreement is only counted, since one sample is all or nothing.

        Raises:
            WrongError: with what was expected and what came.
            RefusedError: the answer was an error.
        """
        if isinstance(answer, RefusedError):
            raise answer
        actual, expected = self._as_model(answer, sample.outputs), self._with_samples(sample.outputs)
        verdict = compare(actual, expected, self._each)
        if not verdict.passed:
            furthest = traffic.first_wrong(actual, expected)
            raise WrongError(f"{where}: {verdict.reason}" + (f"; {furthest}" if furthest else ""))
        tally.max_abs = max(tally.max_abs, verdict.max_abs)
        if verdict.top1 is not None:
            size = len(next(iter(expected.values())))
            tally.judged += size
            tally.agreed += verdict.top1 * size

    def agreement(self, tally: Tally) -> None:
        """Judge the arg-max over all samples of a check.

        Raises:
            WrongError: it agrees too rarely.
        """
        limit = self._expectation.tolerance.min_top1
        if tally.judged and tally.agreed / tally.judged < limit:
            share = tally.agreed / tally.judged
            raise WrongError(f"arg-max agrees for {share:.2%} of {tally.judged} samples, under {limit:.2%}")

    def _as_model(self, answer: Tensors, outputs: Tensors) -> Mapping[str, Array]:
        """Undo the configuration's reshapes: the reference has the model's own shapes."""
        restored = {
            name: array.reshape(outputs[name].shape)
            if name in self._reshaped and name in outputs and array.size == outputs[name].size
            else array
            for name, array in answer.items()
        }
        return self._with_samples(restored)

    def _with_samples(self, tensors: Tensors) -> Mapping[str, Array]:
        """Dimension 0 is the samples, in a comparison; a model without a batch dimension has one sample."""
        return tensors if self._batched else {name: array[None] for name, array in tensors.items()}
