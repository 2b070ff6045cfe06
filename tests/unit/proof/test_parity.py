import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest

from pipeline.base.errors import StageError
from pipeline.base.values import Array, GoldenSamples, Sample, Tensors
from pipeline.proof import parity
from pipeline.proof.comparison import FP32
from pipeline.schema.variants import AccuracyGate

TOLERANCE = FP32


class Fake:
    """Answers with a function of ``x``, and remembers the batches it was given."""

    def __init__(self, answer: Callable[[Array], Array]) -> None:
        self.answer = answer
        self.seen: list[Array] = []

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self.seen.append(inputs["x"])
        return {"y": self.answer(inputs["x"])}


def golden(count: int = 5, *, batched: bool = True, targets: bool = True) -> GoldenSamples:
    rows = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    rows = rows[:, None] if batched else rows
    samples = tuple(
        Sample(inputs={"x": row}, outputs={"y": 2 * row}, target=int(row.argmax()) if targets else None) for row in rows
    )
    return GoldenSamples(samples=samples, batched=batched, sha256="")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(0, (1,)), (1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (32, (1, 16, 32)), (4096, (1, 32, 64))],
)
def test_batch_sizes(limit: int, expected: tuple[int, ...]) -> None:
    assert parity.batch_sizes(limit) == expected


def test_every_sample_is_run_at_every_batch_size() -> None:
    runtime = Fake(lambda x: 2 * x)
    result = parity.measure(runtime, golden(), batch_sizes=(1, 2, 4), tolerance=TOLERANCE)
    assert result.passed
    assert (result.max_abs, result.cosine, result.top1_agreement) == (0.0, 1.0, 1.0)
    assert result.batch_sizes == (1, 2, 4)
    assert [len(batch) for batch in runtime.seen] == [1] * 5 + [2] * 3 + [4] * 2
    assert result.samples == 5 + 6 + 8
    for size in (1, 2, 4):
        rows = np.concatenate([batch for batch in runtime.seen if len(batch) == size])
        assert {tuple(row) for row in rows} == {tuple(sample.inputs["x"][0]) for sample in golden().samples}


def test_a_fault_at_one_batch_size_is_found_and_named() -> None:
    runtime = Fake(lambda x: 2 * x + (0.03125 if len(x) == 4 else 0))
    result = parity.measure(runtime, golden(), batch_sizes=(1, 2, 4), tolerance=TOLERANCE)
    assert not result.passed
    assert result.max_abs == pytest.approx(0.03125, rel=1e-4)
    assert result.worst.startswith("y[")
    assert result.worst.endswith(", batch 4")
    assert result.reason.startswith("at batch 4, y[")
    assert "differs by 3.1e-02, over 1.0e-04 + 1.0e-03·|" in result.reason


def test_a_batch_mixed_up_is_found() -> None:
    runtime = Fake(lambda x: 2 * x[::-1])
    result = parity.measure(runtime, golden(), batch_sizes=(1, 4), tolerance=TOLERANCE)
    assert not result.passed
    assert "batch 4" in result.worst


def test_nan_gives_numbers_that_json_can_hold() -> None:
    result = parity.measure(Fake(lambda x: x * np.float32(np.nan)), golden(), batch_sizes=(1,), tolerance=TOLERANCE)
    assert not result.passed
    assert "is nan, expected" in result.reason
    json.dumps(asdict(result), allow_nan=False)


def test_top1_is_judged_over_all_samples_not_over_each_batch() -> None:
    near = np.float32(1e-5)
    rows = [np.array([[1.0, 0.0]], np.float32)] * 199 + [np.array([[1.0, 1.0 - near]], np.float32)]
    samples = tuple(Sample(inputs={"x": row}, outputs={"y": row}) for row in rows)
    flip = Fake(lambda x: x[:, ::-1] if x[0, 1] else x)
    result = parity.measure(
        flip, GoldenSamples(samples=samples, batched=True, sha256=""), batch_sizes=(1,), tolerance=TOLERANCE
    )
    assert result.top1_agreement == pytest.approx(0.995)
    assert result.passed
    few = GoldenSamples(samples=samples[-10:], batched=True, sha256="")
    result = parity.measure(flip, few, batch_sizes=(1,), tolerance=TOLERANCE)
    assert result.reason == "arg-max agrees for 90.00% of samples, under 99.00%"


def test_a_model_without_a_batch_dimension_is_run_one_by_one() -> None:
    runtime = Fake(lambda x: 2 * x)
    result = parity.measure(runtime, golden(batched=False), batch_sizes=(1,), tolerance=TOLERANCE)
    assert result.passed
    assert result.top1_agreement == 1.0
    assert [batch.shape for batch in runtime.seen] == [(4,)] * 5


def test_accuracy_of_variant_and_source() -> None:
    samples = golden(40)
    wrong = Fake(lambda x: np.where(x[:, :1] > 0, -x, x))
    result = parity.accuracy(wrong, samples, gate=None)
    rows = np.concatenate([sample.inputs["x"] for sample in samples.samples])
    expected = np.mean(wrong.answer(rows).argmax(1) == rows.argmax(1))
    assert result is not None
    assert (result.metric, result.value, result.reference, result.samples) == ("top1", expected, 1.0, 40)
    assert 0 < result.value < 1
    assert result.passed


def test_accuracy_gates() -> None:
    samples = golden(40)
    wrong = Fake(lambda x: -x)
    low = parity.accuracy(wrong, samples, gate=AccuracyGate(min=0.9, max_drop=None))
    assert low is not None
    assert not low.passed
    assert low.reason == "accuracy 0.00% is under the least, 90.00%"
    drop = parity.accuracy(wrong, samples, gate=AccuracyGate(min=None, max_drop=0.01))
    assert drop is not None
    assert drop.reason == "accuracy 0.00% is 100.00% below the source model's 100.00%, more than 1.00%"
    good = parity.accuracy(Fake(lambda x: x), samples, gate=AccuracyGate(min=1.0, max_drop=0.0))
    assert good is not None
    assert good.passed


def test_accuracy_without_a_batch_dimension() -> None:
    result = parity.accuracy(Fake(lambda x: x), golden(batched=False), gate=None)
    assert result is not None
    assert result.value == 1.0


def test_an_output_with_too_few_columns_for_the_classes_is_not_taken_for_the_scores() -> None:
    """Boxes of four coordinates before ten scores."""
    scores = np.eye(10, dtype=np.float32)
    samples = tuple(
        Sample(inputs={"x": row[None]}, outputs={"box": np.zeros((1, 4), np.float32), "y": row[None]}, target=number)
        for number, row in enumerate(scores)
    )
    result = parity.accuracy(
        Fake(lambda x: x), GoldenSamples(samples=samples, batched=True, sha256=""), gate=AccuracyGate(min=1.0)
    )
    assert result is not None
    assert (result.value, result.reference, result.samples) == (1.0, 1.0, 10)


def test_no_targets_no_accuracy_unless_a_gate_asks() -> None:
    samples = golden(targets=False)
    assert parity.accuracy(Fake(lambda x: x), samples, gate=None) is None
    with pytest.raises(StageError, match="cannot be judged") as raised:
        parity.accuracy(Fake(lambda x: x), samples, gate=AccuracyGate(min=0.5, max_drop=None))
    assert raised.value.found == "the samples have no labels"


def test_no_scores_no_accuracy() -> None:
    samples = tuple(
        Sample(inputs={"x": np.ones((1, 2), np.float32)}, outputs={"y": np.ones((1,), np.float32)}, target=0)
        for _ in range(2)
    )
    scoreless = GoldenSamples(samples=samples, batched=True, sha256="")
    assert parity.accuracy(Fake(lambda x: x), scoreless, gate=None) is None
    with pytest.raises(StageError) as raised:
        parity.accuracy(Fake(lambda x: x), scoreless, gate=AccuracyGate(min=None, max_drop=0.1))
    assert raised.value.found == "no output of class scores, [N, classes]"
