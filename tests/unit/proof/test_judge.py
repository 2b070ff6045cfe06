from __future__ import annotations

import numpy as np
import pytest

from pipeline.base import model_config
from pipeline.base.values import Sample, Signature, TensorSpec, Tolerance
from pipeline.proof.judge import Judge, Tally, WrongError
from pipeline.servers.triton.client.messages import RefusedError
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


def judge(*, min_top1: float = 0.9, batch: str | None = "N") -> Judge:
    leading = ("N",) if batch else ()
    outputs = (
        TensorSpec(name="y", dtype="float32", shape=leading),
        TensorSpec(name="scores", dtype="float32", shape=(*leading, 2)),
    )
    signature = Signature(inputs=(TensorSpec(name="x", dtype="float32", shape=leading),), outputs=outputs, batch=batch)
    return Judge(
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
    judge(batch=None).compare(
        {"y": np.array(3, np.float32), "scores": np.array([0, 1], np.float32)}, sample, "here", tally
    )
    assert tally.judged == 1
