import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from pipeline.images import postprocessing
from pipeline.images.postprocessing import Postprocessing, UnusableScores

HOW = Postprocessing(activation="softmax", labels=("cat", "dog", "owl"), top_k=2, threshold=0.0)


def test_activations() -> None:
    scores = np.asarray([[1000.0, 999.0, -1000.0]], np.float32)
    assert_allclose(postprocessing.probabilities(scores, "softmax")[0], [0.73105858, 0.26894142, 0.0], atol=1e-8)
    assert_allclose(postprocessing.probabilities(np.log([0.2, 0.8]), "exp"), [0.2, 0.8])
    assert_allclose(postprocessing.probabilities(np.asarray([0.2, 0.8]), "none"), [0.2, 0.8])


def test_best_first_with_labels() -> None:
    found = postprocessing.ranked(np.asarray([0.0, 2.0, 1.0]), HOW)
    assert [row["label"] for row in found] == ["dog", "owl"]
    assert found[0]["probability"] == pytest.approx(0.665241, abs=1e-6)
    assert json.loads(postprocessing.answer(np.asarray([0.0, 2.0, 1.0]), HOW)) == found


def test_threshold_ties_and_no_labels() -> None:
    how = Postprocessing(activation="none", labels=(), top_k=5, threshold=0.3)
    assert postprocessing.ranked(np.asarray([0.3, 0.1, 0.3, 0.3]), how) == [
        {"label": index, "probability": 0.3} for index in ("0", "2", "3")
    ]
    assert postprocessing.answer(np.asarray([0.1]), how) == "[]"


@pytest.mark.parametrize("activation", ["softmax", "exp", "none"])
@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_scores_that_give_no_probabilities_are_no_answer(activation: str, score: float) -> None:
    for scores in ([0.1, score, 0.2], [score, score, score]):
        with pytest.raises(UnusableScores, match="NaN or infinity"):
            postprocessing.answer(np.asarray(scores, np.float32), replace(HOW, activation=activation))


def test_impossible_classes_are_an_answer_and_an_overflow_is_none() -> None:
    scores = np.asarray([-np.inf, 0.0, -np.inf], np.float32)
    for activation, probability in (("softmax", 1.0), ("exp", 1.0), ("none", 0.0)):
        how = replace(HOW, activation=activation, threshold=0.0)
        found = postprocessing.ranked(scores, how)
        assert found[0] == {"label": "dog", "probability": probability}
    with pytest.raises(UnusableScores):
        postprocessing.ranked(np.asarray([1000.0, 0.0]), replace(HOW, activation="exp"))
    with pytest.raises(UnusableScores):  # of nothing but impossible classes softmax knows no sum
        postprocessing.ranked(np.full(3, -np.inf), HOW)


def test_json_keeps_everything() -> None:
    assert Postprocessing.from_json(HOW.to_json()) == HOW
    for text in ("{}", "no"):
        with pytest.raises(ValueError):
            Postprocessing.from_json(text)
