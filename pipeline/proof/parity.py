"""A variant against the source model, in this process: over all golden samples, at several batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipeline.base.errors import StageError
from pipeline.base.step import Outcome, Task
from pipeline.base.values import AccuracyResult, GoldenSamples, ParityResult, Runtime, Sample, Tolerance
from pipeline.data import samples as golden_samples
from pipeline.proof.comparison import Comparison, compare, with_samples
from pipeline.proof.source_accuracy import has_score_per_target
from pipeline.schema.variants import AccuracyGate

_LARGEST_BATCH = 64  # a larger one proves nothing new about the file, and the served test runs max_batch_size itself
_ACCURACY_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What a variant must satisfy in this process.

    Attributes:
        accuracy: limits, or None.
    """

    max_batch_size: int
    tolerance: Tolerance
    accuracy: AccuracyGate | None

    def to_json(self) -> dict[str, Any]:
        """JSON values that ``of`` reads back."""
        accuracy = self.accuracy.model_dump() if self.accuracy else None
        return {"max_batch_size": self.max_batch_size, "tolerance": asdict(self.tolerance), "accuracy": accuracy}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Gates:
        """From the arguments of a step, which may hold others too."""
        accuracy = values["accuracy"]
        return cls(
            max_batch_size=values["max_batch_size"],
            tolerance=Tolerance(**values["tolerance"]),
            accuracy=AccuracyGate(**accuracy) if accuracy else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The numbers of a graph or an engine, and whether the gates take them.

    Attributes:
        accuracy: None where it is not measured.
    """

    parity: ParityResult
    accuracy: AccuracyResult | None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it is refused; none where it passed."""
        return tuple(result.reason for result in (self.parity, self.accuracy) if result and not result.passed)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Judgement:
        """From the values of a parity step."""
        found, accuracy = dict(values["parity"]), values["accuracy"]
        sizes, tolerance = tuple(found.pop("batch_sizes")), Tolerance(**found.pop("tolerance"))
        return cls(
            parity=ParityResult(**found, batch_sizes=sizes, tolerance=tolerance),
            accuracy=AccuracyResult(**accuracy) if accuracy else None,
        )


def judged(runtime: Runtime, task: Task) -> Outcome:
    """What every parity step gives: a ``Judgement``'s values; upstream ``samples``, arguments those of ``Gates``."""
    found = judge(runtime, golden_samples.golden(task), Gates.of(task.arguments))
    return Outcome(values=asdict(found))


def judge(runtime: Runtime, golden: GoldenSamples, gates: Gates) -> Judgement:
    """Parity and accuracy over the golden samples; a StageError where the runtime fails or a gate cannot be judged."""
    sizes = batch_sizes(gates.max_batch_size)
    return Judgement(
        parity=measure(runtime, golden, batch_sizes=sizes, tolerance=gates.tolerance),
        accuracy=accuracy(runtime, golden, gate=gates.accuracy),
    )


def batch_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes worth running, ascending and distinct: 1, the middle and the served limit (64 at most).

    A ``max_batch_size`` of 0, of a model without a batch dimension, gives ``(1,)``.
    """
    top = min(max(max_batch_size, 1), _LARGEST_BATCH)
    return tuple(sorted({1, (top + 1) // 2, top}))


def measure(
    runtime: Runtime, golden: GoldenSamples, *, batch_sizes: Sequence[int], tolerance: Tolerance
) -> ParityResult:
    """Run every golden sample at every batch size and compare with the source model's answers.

    Samples that cannot be joined are run one by one. ``min_top1`` is judged over all samples, the rest of the tolerance
    over each batch.
    """
    sizes = tuple(batch_sizes) if golden.batched else (1,)
    each_batch = replace(tolerance, min_top1=0.0)
    rows: list[tuple[int, Comparison]] = []
    for size in sizes:
        for batch in golden_samples.batches(golden, size):
            actual = with_samples(runtime.run(batch.inputs), batched=golden.batched)
            expected = with_samples(batch.outputs, batched=golden.batched)
            rows.append((size, compare(actual, expected, each_batch)))
    size, worst = max(rows, key=lambda row: (not row[1].passed, row[1].max_abs))
    top1 = _share(rows)
    reasons = [f"at batch {size}, {worst.reason}"] if not worst.passed else []
    if top1 is not None and top1 < tolerance.min_top1:
        reasons.append(f"arg-max agrees for {top1:.2%} of samples, under {tolerance.min_top1:.2%}")
    return ParityResult(
        max_abs=worst.max_abs,
        max_rel=max(row.max_rel for _, row in rows),
        cosine=min(row.cosine for _, row in rows),
        top1_agreement=top1,
        samples=sum(size for size, _ in rows),
        batch_sizes=sizes,
        tolerance=tolerance,
        passed=not reasons,
        worst=f"{worst.worst}, batch {size}" if worst.worst else f"batch {size}",
        reason="; ".join(reasons),
    )


def accuracy(runtime: Runtime, golden: GoldenSamples, *, gate: AccuracyGate | None) -> AccuracyResult | None:
    """Share of golden samples whose arg-max is their target, for the variant and for the source model.

    The scores are the first output of shape ``[N, classes]`` (``[classes]`` for a model without a batch dimension)
    that has one for every target. None when no sample has a target, or no output is scores, and no gate asks for them.

    Raises:
        StageError: the runtime failed, or ``gate`` cannot be judged on these samples.
    """
    labelled = [sample for sample in golden.samples if sample.target is not None]
    name = _scores(labelled, golden.batched)
    if name is None:
        if gate is not None and (gate.min is not None or gate.max_drop is not None):
            raise StageError(
                "parity: the accuracy gate cannot be judged",
                found="no output of class scores, [N, classes]" if labelled else "the samples have no labels",
                hint="take labelled samples for `samples.from`, or remove `gates.accuracy`",
            )
        return None
    correct = reference = 0
    for chunk in golden_samples.chunks(replace(golden, samples=tuple(labelled)), _ACCURACY_BATCH):
        targets = np.array([sample.target for sample in chunk])
        inputs = {key: np.concatenate([sample.inputs[key] for sample in chunk]) for key in chunk[0].inputs}
        outputs = runtime.run(inputs if golden.batched else chunk[0].inputs)
        expected = np.concatenate([np.atleast_2d(sample.outputs[name]) for sample in chunk])
        correct += int((np.atleast_2d(outputs[name]).argmax(axis=1) == targets).sum())
        reference += int((expected.argmax(axis=1) == targets).sum())
    value, source = correct / len(labelled), reference / len(labelled)
    reason = _refusal(value, source, gate)
    return AccuracyResult(
        metric="top1", value=value, reference=source, samples=len(labelled), passed=not reason, reason=reason
    )


def _refusal(value: float, reference: float, gate: AccuracyGate | None) -> str:
    reasons = []
    if gate is not None and gate.min is not None and value < gate.min:
        reasons.append(f"accuracy {value:.2%} is under the least, {gate.min:.2%}")
    if gate is not None and gate.max_drop is not None and reference - value > gate.max_drop + 1e-12:
        reasons.append(
            f"accuracy {value:.2%} is {reference - value:.2%} below the source model's {reference:.2%}, "
            f"more than {gate.max_drop:.2%}"
        )
    return "; ".join(reasons)


def _share(rows: Sequence[tuple[int, Comparison]]) -> float | None:
    shares = [(size, row.top1) for size, row in rows if row.top1 is not None]
    return sum(size * share for size, share in shares) / sum(size for size, _ in shares) if shares else None


def _scores(labelled: Sequence[Sample], batched: bool) -> str | None:
    names = labelled[0].outputs if labelled else ()
    return next((name for name in names if has_score_per_target(labelled, name, batched=batched)), None)
