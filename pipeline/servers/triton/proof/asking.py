"""Turns golden samples into requests, and answers into verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.base.values import Sample, Tensors
from pipeline.proof.failures import RefusedError
from pipeline.proof.judge import Judge, Tally
from pipeline.servers.triton.client.messages import Request
from pipeline.servers.triton.proof import served
from pipeline.servers.triton.proof.expectation import Expectation


class AskingJudge(Judge):
    """Asks and judges as one expectation says.

    Args:
        expectation: the model, its shapes and its tolerance.
    """

    def __init__(self, expectation: Expectation) -> None:
        super().__init__(expectation.tolerance, batched=expectation.signature.batch is not None)
        self._expectation = expectation
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
        """See ``Judge``; the configuration's reshapes are undone first: the reference has the model's own shapes."""
        if not isinstance(answer, RefusedError):
            answer = {
                name: array.reshape(sample.outputs[name].shape)
                if name in self._reshaped and name in sample.outputs and array.size == sample.outputs[name].size
                else array
                for name, array in answer.items()
            }
        super().compare(answer, sample, where, tally)
