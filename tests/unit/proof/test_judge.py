from __future__ import annotations

import numpy as np
import pytest

from pipeline.base.values import Sample, Tolerance
from pipeline.proof.failures import RefusedError, WrongError
from pipeline.proof.judge import Judge, Tally, first_wrong

SAMPLE = Sample(
    inputs={"x": np.array([1.0, 2.0], np.float32)},
    outputs={"y": np.array([3.0, 4.0], np.float32), "scores": np.array([[0.0, 1.0], [1.0, 0.99]], np.float32)},
)


def judge(*, min_top1: float = 0.9, batched: bool = True) -> Judge:
    return Judge(Tolerance(max_abs=0.02, max_rel=0.0, min_cosine=0.99, min_top1=min_top1), batched=batched)


def answer(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {**SAMPLE.outputs, **changes}


def test_an_error_is_no_answer() -> None:
    with pytest.raises(RefusedError, match="400"):
        judge().compare(RefusedError("no", "400"), SAMPLE, "here", Tally())


def test_arg_max_is_judged_over_all_samples_of_a_check() -> None:
    flipped = answer(scores=np.array([[0.0, 1.0], [0.99, 1.0]], np.float32))
    tally = Tally()
    strict, lenient = judge(min_top1=0.9), judge(min_top1=0.75)
    strict.compare(flipped, SAMPLE, "here", tally)
    strict.compare(answer(), SAMPLE, "here", tally)
    lenient.agreement(tally)
    with pytest.raises(WrongError, match=r"arg-max agrees for 75\.00% of 4 samples, under 90\.00%"):
        strict.agreement(tally)


def test_without_a_batch_dimension_there_is_one_sample() -> None:
    sample = Sample(inputs={"x": np.float32(1)}, outputs={"y": np.float32(3), "scores": np.array([0, 1], np.float32)})
    tally = Tally()
    judge(batched=False).compare(
        {"y": np.array(3, np.float32), "scores": np.array([0, 1], np.float32)}, sample, "here", tally
    )
    assert tally.judged == 1


def test_first_wrong_is_the_furthest_and_nan_is_further() -> None:
    expected = {"a": np.array([[1.0, 2.0]]), "b": np.array([[5, 6]])}
    assert first_wrong({"a": np.array([[1.0, 2.5]]), "b": np.array([[5, 9]])}, expected) == "b[0, 1]: expected 6, got 9"
    actual = {"a": np.array([[np.nan, 2.5]]), "b": np.array([[5, 9]])}
    assert first_wrong(actual, expected) == "a[0, 0]: expected 1, got nan"
    assert first_wrong({"a": np.zeros(3)}, expected) == ""
