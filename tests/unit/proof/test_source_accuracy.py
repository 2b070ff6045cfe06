"""What is refused as a source, and above all what is not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from pipeline.base.values import Array, GoldenSamples, Sample, Signature, TensorSpec
from pipeline.proof.source_accuracy import SourceAccuracy, judge, unvarying

NAMES = tuple("abcdefghij")


def signature(*outputs: TensorSpec, batch: str | None = "N") -> Signature:
    return Signature(inputs=(), outputs=outputs or (spec("y", 10, labels=NAMES),), batch=batch)


def spec(name: str, width: int, *, labels: tuple[str, ...] = (), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=("N", width), labels=labels)


def golden(targets: Any, *, batched: bool = True, **outputs: Array) -> GoldenSamples:
    """Samples of the given answers: a row of each output for every target, -1 for no target."""
    rows = [{name: array[row : row + 1] if batched else array[row] for name, array in outputs.items()}
            for row in range(len(targets))]  # fmt: skip
    samples = [
        Sample(inputs={}, outputs=row, target=int(target) if target >= 0 else None)
        for row, target in zip(rows, targets, strict=True)
    ]
    return GoldenSamples(samples=tuple(samples), batched=batched, sha256="")


def scores(answers: Any, width: int = 10) -> Array:
    return np.eye(width, dtype=np.float32)[np.asarray(answers)]


def judged(samples: GoldenSamples, outputs: Signature | None = None, **told: Any) -> SourceAccuracy | None:
    return judge(samples, outputs or signature(), **{"classes": 0, "trained": False, "held_out": None, **told})


def reason(samples: GoldenSamples, outputs: Signature | None = None, **told: Any) -> str:
    found = judged(samples, outputs, **told)
    assert found is not None
    return found.reason


def partly_right(correct: int, targets: Array, width: int = 10) -> Array:
    """The first ``correct`` answers right, the others wrong."""
    answers = targets.copy()
    answers[correct:] = (answers[correct:] + 1) % width
    return scores(answers, width)


TARGETS = np.arange(128) % 10


def test_a_right_source_passes_with_its_figures() -> None:
    found = judged(golden(TARGETS, y=partly_right(124, TARGETS)), held_out=(0.98, 359))
    assert found is not None
    assert asdict(found) == {
        "output": "y", "samples": 128, "value": 124 / 128, "chance": pytest.approx(0.1, abs=0.01), "reason": "",
    }  # fmt: skip


def test_labels_in_another_order_are_refused() -> None:
    told = reason(golden(TARGETS, y=scores((TARGETS + 1) % 10)))
    assert told == "right for 0 of 128 labelled golden samples (0.00%): no better than guessing (10.0%)"


@pytest.mark.parametrize("count", [24, 32, 64, 256])
def test_one_answer_for_everything_is_refused(count: int) -> None:
    """What a wrong normalisation makes of a network."""
    targets = np.arange(count) % 10
    assert "no better than guessing" in reason(golden(targets, y=scores(np.full(count, 3))))


def test_random_answers_are_refused() -> None:
    random = np.random.default_rng(0)
    refused = [bool(reason(golden(TARGETS, y=scores(random.integers(0, 10, 128))))) for _ in range(200)]
    assert sum(refused) > 180


def test_far_below_the_held_out_accuracy_is_refused_though_better_than_guessing() -> None:
    samples = golden(TARGETS, y=partly_right(77, TARGETS))
    assert reason(samples) == ""
    assert reason(samples, held_out=(0.9833, 359)) == (
        "right for 77 of 128 labelled golden samples (60.16%): far below the 98.33% of its own 359 held-out samples"
    )


def test_both_faults_are_told() -> None:
    told = reason(golden(TARGETS, y=scores((TARGETS + 1) % 10)), held_out=(0.98, 359))
    assert " no better than guessing (10.0%) and far below the 98.00% of its own 359 held-out samples" in told


@pytest.mark.parametrize(("correct", "held_out"), [(110, (0.98, 359)), (5, (1.0, 10)), (100, (0.98, 12))])
def test_another_data_set_may_be_harder_and_few_samples_prove_little(correct: int, held_out: tuple[float, int]) -> None:
    targets = TARGETS if correct > 5 else TARGETS[:8]
    assert reason(golden(targets, y=partly_right(correct, targets)), held_out=held_out) == ""


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 16, 32, 128, 1000])
@pytest.mark.parametrize("width", [2, 3, 10, 100])
def test_a_right_source_is_not_refused_by_chance(count: int, width: int) -> None:
    """The exact probability over all numbers of right answers, for a source of moderate agreement (kappa 0.4)."""
    targets = np.arange(count) % width
    true = 1 / width + 0.4 * (1 - 1 / width)
    risk = 0.0
    for correct in range(count + 1):
        weight = float(binom.pmf(correct, count, true))
        if weight > 1e-9 and reason(golden(targets, y=partly_right(correct, targets, width)),
                                    signature(spec("y", width, labels=("",) * width))):  # fmt: skip
            risk += weight
    assert risk < 0.004  # the bound is 0.001 for the chance these answers happen to have, which is near 1 / width


def test_few_samples_refuse_nothing() -> None:
    """Six photographs, all wrong, may be six hard ones."""
    assert reason(golden([0, 1, 2, 3, 4, 5], y=scores([1, 2, 3, 4, 5, 6]))) == ""


@pytest.mark.parametrize(("correct", "refused"), [(100, False), (60, False), (20, False), (0, True)])
def test_samples_of_one_class(correct: int, refused: bool) -> None:
    """Always answering that class is right for all of them: guessing is one in the number of scores there."""
    targets = np.zeros(100, np.int64)
    assert bool(reason(golden(targets, y=partly_right(correct, targets)))) == refused


def test_a_rare_class_found_half_the_time_is_better_than_guessing() -> None:
    """95 % of one class: always answering it is as often right, but knows nothing."""
    targets = np.array([0] * 950 + [1] * 50)
    useful, constant = targets.copy(), np.zeros(1000, np.int64)
    useful[:25], useful[-25:] = 1, 0
    outputs = signature(spec("y", 2, labels=("ok", "fraud")))
    assert reason(golden(targets, y=scores(useful, 2)), outputs) == ""
    assert "no better than guessing (95.0%)" in reason(golden(targets, y=scores(constant, 2)), outputs)


WRONG = scores((TARGETS + 1) % 10)


@pytest.mark.parametrize(
    ("samples", "outputs", "told"),
    [
        pytest.param(golden(np.full(128, -1), y=WRONG), signature(), {}, id="no labels"),
        pytest.param(golden(TARGETS, y=WRONG[:, :1]), signature(spec("y", 1)), {}, id="regression"),
        pytest.param(golden(TARGETS, y=WRONG[:, :4]), signature(spec("y", 4)), {}, id="fewer scores than classes"),
        pytest.param(golden(TARGETS + 100, y=WRONG), signature(), {}, id="targets are no class indices"),
        pytest.param(golden(TARGETS, y=np.repeat(WRONG[:, None], 3, 1)), signature(), {}, id="a sequence of scores"),
        pytest.param(
            golden(TARGETS, y=WRONG.astype(np.int64)), signature(spec("y", 10, dtype="int64")), {}, id="integers"
        ),
        pytest.param(
            golden(TARGETS, y=scores((TARGETS + 1) % 10, 64)), signature(spec("y", 64)), {}, id="an embedding"
        ),
        pytest.param(
            golden(TARGETS, y=scores((TARGETS + 1) % 10, 1000)),
            signature(spec("y", 1000)),
            {"classes": 10},
            id="folders numbered by their order, scores of a library's 1000 classes",
        ),
        pytest.param(
            golden(TARGETS, box=WRONG, y=scores(TARGETS, 64)),
            signature(spec("y", 64), spec("box", 10)),
            {"trained": True},
            id="trained on its first output",
        ),
    ],
)
def test_what_is_no_classification_is_not_refused(samples: GoldenSamples, outputs: Signature, told: Any) -> None:
    found = judged(samples, outputs, **told)
    assert found is None or found.reason == ""


def test_the_output_with_labels_is_judged() -> None:
    outputs = signature(spec("other", 10), spec("y", 10, labels=NAMES))
    assert judged(golden(TARGETS, other=WRONG, y=scores(TARGETS)), outputs).value == 1.0  # type: ignore[union-attr]
    assert "no better" in reason(golden(TARGETS, other=scores(TARGETS), y=WRONG), outputs)


def test_of_several_outputs_without_labels_the_best_speaks() -> None:
    outputs = signature(spec("first", 10), spec("second", 10))
    assert reason(golden(TARGETS, first=WRONG, second=scores(TARGETS)), outputs) == ""
    assert "no better" in reason(golden(TARGETS, first=WRONG, second=WRONG), outputs)


def test_without_labels_an_output_of_as_many_scores_as_classes_is_judged() -> None:
    outputs = signature(spec("y", 10))
    assert "no better" in reason(golden(TARGETS, y=WRONG), outputs)
    few = golden(TARGETS % 9, y=scores((TARGETS % 9 + 1) % 10))
    assert "no better" in reason(few, outputs, classes=10)  # the data names ten, one of which no sample shows
    assert judged(few, outputs) is None


def test_a_trained_source_has_more_scores_than_classes() -> None:
    outputs = signature(spec("y", 1000))
    assert "no better" in reason(golden(TARGETS, y=scores((TARGETS + 1) % 10, 1000)), outputs, trained=True)


def test_a_model_without_a_batch_dimension() -> None:
    outputs = Signature(
        inputs=(), outputs=(TensorSpec(name="y", dtype="float32", shape=(10,), labels=NAMES),), batch=None
    )
    assert reason(golden(TARGETS, batched=False, y=scores(TARGETS)), outputs) == ""
    assert "no better" in reason(golden(TARGETS, batched=False, y=WRONG), outputs)


def test_samples_without_a_target_do_not_count() -> None:
    targets = np.where(np.arange(128) % 2, TARGETS, -1)
    answers = np.where(targets >= 0, TARGETS, 0)
    assert judged(golden(targets, y=scores(answers))).samples == 64  # type: ignore[union-attr]


def test_answers_that_do_not_vary_are_told() -> None:
    none = [-1] * 8
    (same,) = unvarying(golden(none, y=scores([3] * 8), count=np.ones((8, 1), np.int64)))
    assert same.startswith("the source model gives one answer to all 8 golden samples")
    (peak,) = unvarying(golden(none, y=scores([3] * 8) * np.arange(1, 9, dtype=np.float32)[:, None]))
    assert peak.startswith("output y: the greatest value is the same one, [3], for all 8 golden samples")
    (alone,) = unvarying(golden(none, batched=False, y=scores([3] * 8) * np.arange(1, 9, dtype=np.float32)[:, None]))
    assert alone == peak


def test_answers_that_vary_and_a_single_one_are_not_told() -> None:
    varied = golden([-1] * 8, y=scores([3] * 7 + [4]), count=np.ones((8, 1), np.int64), value=np.arange(8.0)[:, None])
    assert list(unvarying(varied)) == []
    assert list(unvarying(golden([-1], y=scores([3])))) == []
