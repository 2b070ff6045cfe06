from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pipeline.load.answers import Judge, distance, distinct


def _floats(*values: float, dtype: str = "float32") -> dict[str, np.ndarray]:
    return {"y": np.array([values], dtype)}


def _text(value: object) -> dict[str, np.ndarray]:
    array = np.empty((1, 1), np.object_)
    array[0, 0] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return {"y": array}


def _rows(**probabilities: float) -> dict[str, np.ndarray]:
    return _text([{"label": label, "probability": value} for label, value in probabilities.items()])


@pytest.mark.parametrize(
    ("actual", "expected", "found"),
    [
        (_floats(1, -4), _floats(1, -4), 0.0),
        (_floats(1, -3), _floats(1, -4), 0.25),
        (_floats(0, 0), _floats(0, 0), 0.0),
        (_floats(0, 1), _floats(0, 0), math.inf),
        (_floats(math.nan, 4), _floats(math.nan, 4.5), 0.5 / 4.5),
        (_floats(1, 4), _floats(math.nan, 4), math.inf),
        (_floats(math.inf, 4), _floats(-math.inf, 4), math.inf),
        (_floats(math.nan, math.nan), _floats(math.nan, math.nan), 0.0),
        (_floats(1, 2), _floats(1, 2, dtype="float64"), math.inf),
        (_floats(1, 2), _floats(1, 2, 3), math.inf),
        (_floats(1), {"z": np.ones((1, 1), np.float32)}, math.inf),
        (_floats(1, 2, dtype="int64"), _floats(1, 2, dtype="int64"), 0.0),
        (_floats(1, 3, dtype="int64"), _floats(1, 2, dtype="int64"), math.inf),
        (_text(b"cat"), _text(b"cat"), 0.0),
        (_text(b"cat"), _text(b"dog"), math.inf),
        (_text({"a": [1, 2.0], "b": "x"}), _text({"a": [1, 4], "b": "x"}), 0.5),
        (_text({"a": [1, 2.0], "b": "x"}), _text({"a": [1, 2], "b": "y"}), math.inf),
        (_text({"a": 1}), _text({"a": 1, "b": 2}), math.inf),
        (_text({"a": True}), _text({"a": 1}), math.inf),
        (_text([]), _text({}), math.inf),
        (_text({"a": 10**400}), _text({"a": 1}), math.inf),
        (_rows(a=10**400), _rows(a=1), math.inf),
        (_rows(a=math.nan), _rows(a=1), math.inf),
        (_rows(a=math.nan, b=0.5), _rows(b=0.6, a=math.nan), 0.1 / 0.6),
    ],
)
def test_distances(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], found: float) -> None:
    assert distance(actual, expected) == pytest.approx(found)


def test_labels_of_nearly_equal_probability_may_change_places() -> None:
    assert distance(_rows(a=0.5, b=0.3001, c=0.1), _rows(a=0.5, c=0.1, b=0.3)) == pytest.approx(0.0002)
    assert distance(_rows(a=0.5, b=0.2), _rows(a=0.5, c=0.2001)) == pytest.approx(0.0001 / 0.5)  # the last of top 2
    assert distance(_rows(a=0.97, b=0.0101), _rows(a=0.97)) == 0.0  # a threshold of 0.01
    assert distance(_rows(a=0.9), _rows(b=0.9)) == pytest.approx(0.8 / 0.9)
    assert distance(_rows(a=0.9, b=0.05), _rows(b=0.9, a=0.05)) == pytest.approx(0.85 / 0.9)
    assert distance(_rows(), _rows()) == 0.0


def test_scores_that_are_no_probabilities_are_compared_as_scores() -> None:
    assert distance(_rows(a=5.0, b=3.0003), _rows(a=5.0, c=3.0)) == pytest.approx(0.0003 / 5)  # the last of top 2
    assert distance(_rows(a=5.0, b=3.0), _rows(b=5.0, a=3.0)) == pytest.approx(2 / 5)
    assert distance(_rows(a=5.0, b=3.0), _rows(c=5.0, d=3.0)) == pytest.approx(2 / 5)
    assert distance(_rows(a=-1.0, b=-2.0), _rows(b=-1.0, a=-2.0)) == pytest.approx(1 / 2)
    assert distance(_rows(a=-1.0, b=-2.0), _rows(a=-1.0, c=-2.001)) == pytest.approx(0.001 / 2.001)
    assert distance(_rows(a=0.9, b=0.8001), _rows(a=0.9, c=0.8)) == pytest.approx(0.0001 / 0.9)  # of sigmoids
    assert distance(_rows(a=5.0), _rows()) == math.inf


def test_inputs_whose_answers_cannot_be_told_apart_are_left_out() -> None:
    answers = [_floats(1, 2), _floats(1, 2.0001), _floats(1, 3), _floats(1, 2), _floats(1, 3.1)]
    assert distinct(answers) == [0, 2, 4]
    half = [_floats(100, 1, dtype="float16"), _floats(100, 1.5, dtype="float16"), _floats(100, 9, dtype="float16")]
    assert distinct(half) == [0, 2]


def test_the_judge() -> None:
    judge = Judge([_floats(1, 2), _floats(1, 2.01), _floats(5, 5)])
    assert judge.fault(0, _floats(1, 2)) == ""
    assert judge.fault(0, _floats(1, 2.0008)) == ""
    assert judge.fault(0, _floats(1, 2.004)) == ""  # further than batching goes, and still nearest to its own
    assert judge.fault(0, _floats(1, 2.01)) == "answered with the result of another request"
    assert judge.fault(1, _floats(1, 2.0)) == "answered with the result of another request"
    assert judge.fault(0, _floats(5, 5)) == "answered with the result of another request"
    assert judge.fault(0, _floats(1, 3)) == "answered otherwise than when asked alone, and as no other input was"
    assert judge.fault(2, _floats(5, math.nan)).startswith("answered otherwise")
    assert judge.fault(2, {}).startswith("answered otherwise")
