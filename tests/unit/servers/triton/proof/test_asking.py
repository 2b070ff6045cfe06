from __future__ import annotations

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.values import Sample, Signature, TensorSpec, Tolerance
from pipeline.proof.failures import WrongError
from pipeline.proof.judge import Tally
from pipeline.servers.triton.proof.asking import AskingJudge
from pipeline.servers.triton.proof.expectation import Expectation

CONFIG = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }
output { name: "y" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } }
output { name: "scores" data_type: TYPE_FP32 dims: [2] }
"""
SAMPLE = Sample(
    inputs={"x": np.array([1.0, 2.0], np.float32)},
    outputs={"y": np.array([3.0, 4.0], np.float32), "scores": np.array([[0.0, 1.0], [1.0, 0.99]], np.float32)},
)


def judge(*, min_top1: float = 0.9, batch: str | None = "N") -> AskingJudge:
    leading = ("N",) if batch else ()
    outputs = (
        TensorSpec(name="y", dtype="float32", shape=leading),
        TensorSpec(name="scores", dtype="float32", shape=(*leading, 2)),
    )
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=leading),), outputs=outputs, batch=batch)
    return AskingJudge(
        Expectation(
            model="m",
            signature=signature,
            max_batch_size=8,
            versions={},
            tolerance=Tolerance(max_abs=0.02, max_rel=0.0, min_cosine=0.99, min_top1=min_top1),
            config=model_config.parse_text(CONFIG, "test"),
            alive=lambda: None,
        )
    )


def answer(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"y": SAMPLE.outputs["y"][:, None], "scores": SAMPLE.outputs["scores"], **changes}


def test_a_request_has_the_served_shape_and_asks_for_every_output() -> None:
    request = judge().request(SAMPLE, "3")
    assert (request.model, request.version, request.outputs) == ("m", "3", ("y", "scores"))
    assert request.inputs["x"].shape == (2, 1)


def test_a_right_answer_passes_and_is_counted() -> None:
    tally = Tally()
    judge().compare(answer(y=np.array([[3.0], [4.0078125]], np.float32)), SAMPLE, "here", tally)
    assert (tally.judged, tally.agreed, tally.max_abs) == (2, 2.0, 0.0078125)


def test_a_wrong_answer_says_where_what_and_how_far() -> None:
    with pytest.raises(WrongError, match=r"^here: y\[1\] differs by 1.0e\+00, .*; y\[1\]: expected 4, got 5$"):
        judge().compare(answer(y=np.array([[3.0], [5.0]], np.float32)), SAMPLE, "here", Tally())


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (answer(scores=np.full((2, 2), np.nan, np.float32)), "nan"),
        (answer(scores=SAMPLE.outputs["scores"].astype(np.float64)), "scores is float64, expected float32"),
        (answer(scores=np.zeros((2, 3), np.float32)), r"scores has shape \[2, 3\], expected \[2, 2\]"),
        ({"scores": SAMPLE.outputs["scores"]}, "outputs are scores, expected scores, y"),
    ],
)
def test_other_wrong_answers(wrong: dict[str, np.ndarray], text: str) -> None:
    with pytest.raises(WrongError, match=text):
        judge().compare(wrong, SAMPLE, "here", Tally())
