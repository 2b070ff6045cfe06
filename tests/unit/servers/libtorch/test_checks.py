"""What is said of a C++ program's answers: the judge, without a program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.base.values import Sample, Signature, TensorSpec, Tolerance
from pipeline.images import postprocessing, preprocessing
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.servers.libtorch import checks as program

HOW = Preprocessing(
    formats=("jpeg", "png"),
    color="gray",
    resize=None,
    crop=None,
    interpolation="bilinear",
    scale=255.0,
    mean=(0.0,),
    std=(0.5,),
    max_pixels=10_000,
    dtype="float32",
    layout="NCHW",
)
SUBJECT = program.Program(
    executable=Path("/x"),
    model=Path("/m"),
    signature=Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 1, 2, 2)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 3)),),
        batch="N",
        image=HOW,
    ),
    output="y",
    answers=Postprocessing(activation="softmax", labels=("a", "b", "c"), top_k=2, threshold=0.0),
    tolerance=Tolerance(max_abs=1e-4, max_rel=0.0, min_cosine=0.99, min_top1=0.9),
    log_path=Path("/l"),
)


def sample(number: int, *, image: bytes = b"") -> Sample:
    pixels = np.full((2, 2, 1), 10 * number, np.uint8)
    scores = np.asarray([[number, 1.5, -2.0]], np.float32)
    tensor = preprocessing.of_pixels(pixels, HOW)[None]
    return Sample(inputs={"x": tensor}, outputs={"y": scores}, image=image or preprocessing.png(pixels))


SAMPLES = tuple(sample(number) for number in range(4))


def answer(samples=SAMPLES, off: float = 0.0) -> dict[str, Any]:
    images = []
    for number, one in enumerate(samples):
        scores = [float(value) + off for value in one.outputs["y"][0]]
        labels = postprocessing.ranked(np.asarray(scores), SUBJECT.answers)
        images.append({"file": f"{number}.png", "scores": scores, "labels": labels})
    return {"images": images, "refused": [{"file": "/f/damaged.png", "reason": "truncated"}]}


def dumped(folder: Path, samples=SAMPLES, levels: float = 0.0) -> Path:
    values = np.concatenate([one.inputs["x"].reshape(-1) for one in samples]) + np.float32(levels / 255 / 0.5)
    values.astype(np.float32).tofile(folder / "inputs.bin")
    return folder / "inputs.bin"


def test_equal_inputs_are_told_apart_from_near_ones(tmp_path: Path) -> None:
    exact, (passed, detail) = program._inputs(SUBJECT, SAMPLES, dumped(tmp_path))
    assert (exact, passed, detail) == ([True] * 4, True, "4 of 4 images bit for bit")
    _, (passed, detail) = program._inputs(SUBJECT, SAMPLES, dumped(tmp_path, levels=1))
    assert not passed
    assert "4 of 4 images; image 0 is 1.0 of 255 levels off, 0 are allowed" in detail
    _, (passed, detail) = program._inputs(SUBJECT, SAMPLES[:3], dumped(tmp_path))
    assert (passed, detail) == (False, "16 values, expected 12")


@pytest.mark.parametrize(("levels", "accepted"), [(2, True), (3, False)])
def test_lossy_images_may_be_decoded_otherwise_by_two_levels(tmp_path: Path, levels, accepted) -> None:
    jpegs = tuple(replace(one, image=b"\xff\xd8\xff") for one in SAMPLES)
    exact, (passed, detail) = program._inputs(SUBJECT, jpegs, dumped(tmp_path, levels=levels))
    assert passed == accepted
    assert f"{levels}.0" in detail
    assert not any(exact)


def test_scores_are_held_to_the_tolerance() -> None:
    exact = [True] * 4
    assert program._scores(SUBJECT, SAMPLES, answer(off=5e-5), exact)[0]
    passed, detail = program._scores(SUBJECT, SAMPLES, answer(off=2e-4), exact)
    assert not passed
    assert "differs by 2.0e-04" in detail
    assert program._scores(SUBJECT, SAMPLES, answer(off=2e-4), [False] * 4)[0]  # of other pixels: the label only
    assert program._scores(SUBJECT, SAMPLES, answer(SAMPLES[:3]), exact) == (False, "3 answers, expected 4")
    turned = answer()
    for image in turned["images"]:
        image["scores"].reverse()
    passed, detail = program._scores(SUBJECT, SAMPLES, turned, [False] * 4)
    assert not passed
    assert "best label agrees for" in detail
    nothing = answer()
    nothing["images"][0]["scores"][0] = None  # what the program writes for NaN and infinity
    assert not program._scores(SUBJECT, SAMPLES, nothing, exact)[0]


def test_labels_are_those_that_the_scores_mean() -> None:
    assert program._labels(SUBJECT, answer())[0]
    wrong = answer()
    wrong["images"][2]["labels"][0]["label"] = "c"
    passed, detail = program._labels(SUBJECT, wrong)
    assert not passed
    assert detail.startswith("2.png")
    nothing = answer()
    nothing["images"][3]["scores"][0] = None
    assert program._labels(SUBJECT, nothing) == (
        False, "3.png: the model's scores give no probabilities: NaN or infinity is among them",
    )  # fmt: skip
    near = answer()
    near["images"][1]["labels"][0]["probability"] += 1e-4
    assert not program._labels(SUBJECT, near)[0]


def test_exactly_the_damaged_file_is_refused() -> None:
    assert program._refusal(answer()) == (True, "truncated")
    assert program._refusal({"refused": []}) == (False, "it was not refused")
    both = {"refused": [*answer()["refused"], {"file": "0.png", "reason": "no"}]}
    assert not program._refusal(both)[0]
