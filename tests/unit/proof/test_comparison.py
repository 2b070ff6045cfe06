import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from pipeline.base.values import Tolerance
from pipeline.proof.comparison import FP32, compare

TOLERANCE = FP32
LOOSE = Tolerance(max_abs=1e9, max_rel=0.0, min_cosine=-1.0, min_top1=0.0)


def one(actual: object, expected: object, tolerance: Tolerance = TOLERANCE, dtype: str = "float32"):
    return compare({"y": np.asarray(actual, dtype)}, {"y": np.asarray(expected, dtype)}, tolerance)


def test_equal_tensors_pass_with_zero_differences() -> None:
    result = one([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]])
    assert (result.max_abs, result.max_rel, result.cosine, result.top1) == (0.0, 0.0, 1.0, 1.0)
    assert result.passed
    assert result.reason == ""


def test_fp32_defaults() -> None:
    assert Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.9999, min_top1=0.99) == TOLERANCE


@pytest.mark.parametrize(
    ("actual", "reason"),
    [
        ({}, "outputs are none, expected y"),
        ({"z": np.zeros((2, 2), np.float32)}, "outputs are z, expected y"),
        ({"y": np.zeros((2, 2), np.float64)}, "y is float64, expected float32"),
        ({"y": np.zeros((1, 2), np.float32)}, "y has shape [1, 2], expected [2, 2]"),
    ],
)
def test_structure_is_compared_first(actual: dict[str, np.ndarray], reason: str) -> None:
    result = compare(actual, {"y": np.zeros((2, 2), np.float32)}, LOOSE)
    assert not result.passed
    assert result.reason == reason
    json.dumps(asdict(result), allow_nan=False)


def test_the_greatest_excess_is_named_with_its_numbers() -> None:
    result = one(
        [[1.0, 100.05], [3.0, 4.1]],
        [[1.0, 100.0], [3.0, 4.0]],
        Tolerance(max_abs=1e-4, max_rel=1e-3, min_cosine=0.0, min_top1=0.0),
    )
    assert not result.passed
    assert result.reason == "y[1, 1] differs by 1.0e-01, over 1.0e-04 + 1.0e-03·|4| (1 of 4 elements)"
    assert result.worst == "y[1, 1]"
    assert result.max_abs == pytest.approx(0.1, rel=1e-4)
    assert result.max_rel == pytest.approx(0.025, rel=1e-4)


def test_the_relative_part_forgives_large_elements() -> None:
    assert one([[1000.5, 1.0]], [[1000.0, 1.0]]).passed
    assert not one([[1002.0, 1.0]], [[1000.0, 1.0]]).passed


def test_max_rel_is_floored_next_to_zero() -> None:
    result = one([[1e-6, 1.0]], [[0.0, 1.0]])
    assert result.max_rel == pytest.approx(1e-4)
    assert result.passed


@pytest.mark.parametrize(("actual", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_nan_and_infinity_where_there_was_a_number(actual: float, shown: str) -> None:
    result = one([[1.0, actual]], [[1.0, 2.0]], LOOSE)
    assert not result.passed
    assert result.reason == f"y[0, 1] is {shown}, expected 2.0 (1 of 2 elements)"
    json.dumps(asdict(result), allow_nan=False)


def test_the_same_nan_and_infinity_are_equal() -> None:
    values = [[np.nan, 1.0, -np.inf], [np.inf, 2.0, 3.0]]
    result = one(values, values)
    assert result.passed
    assert result.top1 == 1.0


def test_opposite_infinities_differ() -> None:
    assert not one([[np.inf]], [[-np.inf]], LOOSE).passed


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_integers_must_be_equal(dtype: str) -> None:
    assert one([1, 2, 3], [1, 2, 3], dtype=dtype).passed
    result = one([1, 7, 3], [1, 2, 3], LOOSE, dtype=dtype)
    assert not result.passed
    assert result.reason == f"y[1] is 7, expected 2 (1 of 3 elements; {dtype} must be equal)"
    assert result.max_abs == 5.0


def test_booleans_must_be_equal() -> None:
    assert one([True, False], [True, False], dtype="bool").passed
    assert not one([True, True], [True, False], LOOSE, dtype="bool").passed


def test_cosine_is_the_least_over_samples() -> None:
    tolerance = Tolerance(max_abs=1e9, max_rel=0.0, min_cosine=0.99, min_top1=0.0)
    result = one([[1.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], tolerance)
    assert result.cosine == pytest.approx(np.sqrt(0.5))
    assert result.reason == "y: cosine similarity 0.707107, under 0.99"


def test_a_sample_of_noise_has_no_direction() -> None:
    assert one([[1e-6, -1e-6], [1.0, 2.0]], [[-1e-6, 1e-6], [1.0, 2.0]]).cosine == pytest.approx(1.0)


def test_a_loose_tolerance_does_not_switch_the_cosine_off() -> None:
    tolerance = Tolerance(max_abs=10.0, max_rel=0.0, min_cosine=0.9, min_top1=0.0)
    assert one([[-1.0, 2.0]], [[1.0, -2.0]], tolerance).cosine == pytest.approx(-1.0)


def test_cosine_of_enormous_values_does_not_overflow() -> None:
    result = one([[1e200, 1e200]], [[1e200, 1e200]], dtype="float64")
    assert result.cosine == pytest.approx(1.0)


def test_top1_counts_rows_and_forgives_exact_ties() -> None:
    tolerance = Tolerance(max_abs=1e9, max_rel=0.0, min_cosine=-1.0, min_top1=0.9)
    tied = one([[0.9, 1.0, 0.0]], [[1.0, 1.0, 0.0]], tolerance)
    assert tied.top1 == 1.0
    flipped = one([[2.0, 1.0], [1.0, 2.0]], [[1.0, 2.0], [1.0, 2.0]], tolerance)
    assert flipped.top1 == 0.5
    assert flipped.reason == "y: arg-max agrees in 50.00% of rows, under 90.00%"


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 7, 5)])
def test_the_last_of_more_axes_is_not_the_classes(shape: tuple[int, ...]) -> None:
    """A segmentation's scores, equal to 1e-6, whose greatest value along the width is another pixel's."""
    expected = np.zeros(shape)
    actual = expected.copy()
    actual[..., 1] = 1e-6
    result = one(actual, expected + 1e-6 * np.eye(shape[-1])[0])
    assert result.passed, result.reason
    assert result.top1 is None


@pytest.mark.parametrize("shape", [(4,), (4, 1), ()])
def test_no_class_axis_no_top1(shape: tuple[int, ...]) -> None:
    result = one(np.ones(shape), np.ones(shape))
    assert result.top1 is None
    assert result.passed


def test_an_empty_output_is_equal() -> None:
    assert one(np.ones((0, 3)), np.ones((0, 3))).passed


def test_every_output_is_judged() -> None:
    expected = {"a": np.ones((2, 2), np.float32), "b": np.ones((2,), np.float32)}
    result = compare({"a": expected["a"], "b": expected["b"] + 1}, expected, LOOSE)
    assert result.passed
    assert result.worst == "b[0]"
    result = compare({"a": expected["a"] + 3, "b": expected["b"] + 1}, expected, TOLERANCE)
    assert result.worst == "a[0, 0]"
    assert "a[0, 0] differs by 3.0e+00" in result.reason
    assert "b[0] differs by 1.0e+00" in result.reason


def test_each_part_of_a_tolerance_allows_what_it_says() -> None:
    reference = np.asarray([[0.0, -2.0], [8.0, 1.0]])
    base = {"min_cosine": -1.0, "min_top1": 0.0}
    for part, expected in (
        (Tolerance(max_abs=0.5, max_rel=0.0, **base), [[0.5, 0.5], [0.5, 0.5]]),
        (Tolerance(max_abs=0.0, max_rel=0.5, **base), [[0.0, 1.0], [4.0, 0.5]]),
        (Tolerance(max_abs=0.0, max_rel=0.0, max_scaled=0.5, **base), [[4.0, 4.0], [4.0, 4.0]]),
        (Tolerance(max_abs=1.0, max_rel=0.5, max_scaled=0.25, **base), [[3.0, 4.0], [7.0, 3.5]]),
    ):
        np.testing.assert_allclose(part.allowed(reference), expected)
    assert Tolerance(max_abs=0.5, max_rel=1.0, max_scaled=1.0, **base).allowed(np.zeros((0, 3))).shape == (0, 3)


def test_a_part_of_the_greatest_magnitude_lets_small_elements_differ() -> None:
    strict = Tolerance(max_abs=0.0, max_rel=0.01, min_cosine=0.9, min_top1=0.0)
    assert not one([[10.0, 0.5]], [[10.0, 0.0]], strict).passed
    assert one([[10.0, 0.5]], [[10.0, 0.0]], replace(strict, max_scaled=0.05)).passed
