"""Labels against reference scores: what is right, what is off by more than the scores may be, what is a tie."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipeline.base.values import Tolerance
from pipeline.images.postprocessing import Postprocessing, answer
from pipeline.proof import labels

TIGHT = Tolerance(max_abs=1e-3, max_rel=0.0, min_cosine=0.0, min_top1=0.0)
HOW = Postprocessing(activation="softmax", labels=("a", "b", "c", "d"), top_k=2, threshold=0.05)
SCORES = np.array([[1.0, 3.0, 2.0, -1.0]], np.float32)  # softmax: 0.0889, 0.6572, 0.2418, 0.0120


def verdict(
    *rows: tuple[str, float], how: Postprocessing = HOW, scores: np.ndarray = SCORES, tolerance: Tolerance = TIGHT
) -> labels.Verdict:
    (reference,) = labels.references(scores, how, tolerance)
    return labels.judged(rows, reference, how)


@pytest.mark.parametrize("activation", ["softmax", "exp", "none"])
def test_what_postprocessing_says_of_scores_within_tolerance_is_right(activation: str) -> None:
    how = Postprocessing(activation=activation, labels=(), top_k=3, threshold=0.0)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 7)) if activation == "softmax" else np.log(rng.dirichlet(np.ones(7), 50))
    scores = np.exp(scores) if activation == "none" else scores
    references = labels.references(scores, how, TIGHT)
    served = scores + rng.uniform(-1e-3, 1e-3, scores.shape)
    for row, reference in zip(served, references, strict=True):
        found = labels.judged(labels.parsed(answer(row, how)), reference, how)
        assert found.differences == ()
        assert found.max_abs < 2e-3
    for row, reference in zip(served + rng.choice([-0.05, 0.05], scores.shape), references, strict=True):
        assert labels.judged(labels.parsed(answer(row, how)), reference, how).differences


def test_a_right_answer_is_first_and_near() -> None:
    found = verdict(("b", 0.657), ("c", 0.242))
    assert found.differences == ()
    assert found.first
    assert found.max_abs == pytest.approx(0.00024, abs=5e-5)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("b", 0.65), ("c", 0.242)], "label 'b': probability 0.65, expected 0.657"),
        ([("c", 0.6572), ("b", 0.2418)], "label 'c': probability 0.6572, expected 0.2417"),
        ([("c", 0.2418), ("b", 0.6572)], "descending, from 0.05 on; found [0.2418, 0.6572]"),
        ([("b", 0.6572)], "label 'c': missing, its probability is 0.2417"),
        ([("b", 0.6572), ("a", 0.0889)], "label 'c': missing, its probability is 0.2417"),
        ([("b", 0.6572), ("c", 0.2418), ("a", 0.0889)], "expected at most 2 labels"),
        ([("b", 0.6572), ("x", 0.2418)], "label 'x': no class is called so"),
        ([("b", 0.6572), ("b", 0.6572)], "label 'b': no class is called so, or it was told already"),
        ([("b", 0.6572), ("c", float("nan"))], "label 'c': probability nan"),
        ([], "label 'b': missing"),
    ],
)
def test_each_wrong_answer_is_told(rows: list[tuple[str, float]], expected: str) -> None:
    found = verdict(*rows)
    assert any(expected in text for text in found.differences), found.differences


def test_ties_may_come_in_either_order() -> None:
    scores = np.array([[1.0, 2.0, 2.0002, -1.0]])
    for rows in ([("b", 0.4136), ("c", 0.4136)], [("c", 0.4137), ("b", 0.4136)]):
        assert verdict(*rows, scores=scores).differences == ()


def test_a_probability_at_the_threshold_may_be_told_or_not() -> None:
    how = Postprocessing(activation="none", labels=("a", "b"), top_k=2, threshold=0.5)
    scores = np.array([[0.7, 0.4995]])
    assert verdict(("a", 0.7), how=how, scores=scores).differences == ()
    assert verdict(("a", 0.7), ("b", 0.5), how=how, scores=scores).differences == ()
    assert verdict(("a", 0.7), ("b", 0.4995), how=how, scores=scores).differences  # under the threshold, and told
    assert verdict(("a", 0.7), how=how, scores=np.array([[0.7, 0.6]])).differences


def test_classes_of_one_name_are_told_apart_by_their_probabilities() -> None:
    how = Postprocessing(activation="none", labels=("crane", "crane"), top_k=2, threshold=0.0)
    scores = np.array([[0.3, 0.7]])
    assert verdict(("crane", 0.7), ("crane", 0.3), how=how, scores=scores).differences == ()
    assert verdict(("crane", 0.7), ("crane", 0.7), how=how, scores=scores).differences


def test_no_more_than_json_of_labels_is_read() -> None:
    assert labels.parsed(b'[{"label": "\xc3\xbc", "probability": 1}]') == [("ü", 1.0)]
    for text in (b"", b"{}x", b"3", json.dumps([{"label": "a"}]).encode(), b"\xff"):
        with pytest.raises(ValueError, match="no JSON list of labels"):
            labels.parsed(text)
