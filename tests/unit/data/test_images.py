"""What the YAML says of images: filled in from the model's input, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.base.errors import ConfigError
from pipeline.base.values import Signature, TensorSpec
from pipeline.config.load import load
from pipeline.data import images
from pipeline.schema.images import Postprocess, Preprocess

YAML = """\
name: net
source: {model: {callable: "os.path:join"}}
inputs:
  x: {shape: [N, 3, 8, 8]}
outputs:
  y: {shape: [N, 10]}
samples: {from: {dataset: digits}}
variants:
  onnx: {format: onnx}
"""


def signature(shape=("N", 3, 8, 8), *, dtype="float32", outputs=(("y", ("N", 10), ()),)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
        outputs=tuple(TensorSpec(name=n, dtype="float32", shape=s, labels=labels) for n, s, labels in outputs),
        batch="N",
    )


def test_the_input_decides_what_is_left_out() -> None:
    found = images.of_section(Preprocess(), signature())
    assert (found.color, found.resize, found.crop, found.layout, found.dtype) == (
        "rgb",
        (8, 8),
        None,
        "NCHW",
        "float32",
    )
    assert images.of_section(Preprocess(), signature(("N", "H", "W", 1))).resize is None
    assert images.of_section(Preprocess(color="gray"), signature(("N", "C", 8, 8))).color == "gray"
    assert images.of_section(Preprocess(resize=(4, 4)), signature(("N", 16))).layout == "flat"
    both = images.of_section(Preprocess(resize=12, crop=(8, 8)), signature())
    assert (both.resize, both.crop) == (12, (8, 8))


@pytest.mark.parametrize(
    ("section", "shape", "dtype", "message"),
    [
        (Preprocess(resize=(9, 8)), ("N", 3, 8, 8), "float32", "is 8x8; images are made 9x8"),
        (Preprocess(resize=8), ("N", 3, 8, 8), "float32", "shorter side only"),
        (Preprocess(resize=12, crop=(8, 8), max_pixels=143), ("N", 3, 8, 8), "float32", "12 x 12 pixels at least"),
        (Preprocess(crop=(4, 4)), ("N", 3, 8, 8), "float32", "images are made 4x4"),
        (Preprocess(color="gray"), ("N", 3, 8, 8), "float32", "has 3 channels"),
        (Preprocess(mean=(0.0, 1.0)), ("N", 3, 8, 8), "float32", "one per channel; 3 channels"),
        (Preprocess(mean=(0.5,)), ("N", 3, 8, 8), "uint8", "raw pixels"),
        (Preprocess(scale=1.0), ("N", 3, 8, 8), "uint8", "raw pixels"),
        (Preprocess(), ("N", 7), "float32", "is no image"),
        (Preprocess(), ("N", 3, 8, 8), "int64", "is no image"),
    ],
)
def test_contradictions_are_refused(section, shape, dtype, message) -> None:
    with pytest.raises(ConfigError) as caught:
        images.of_section(section, signature(shape, dtype=dtype))
    assert message in f"{caught.value.what}; {caught.value.found}"


def test_the_scores_are_found() -> None:
    two = signature(outputs=(("a", ("N", 4), ()), ("b", ("N", 2), ("no", "yes"))))
    assert images.postprocessing(Postprocess(), two)[0] == "b"
    assert images.postprocessing(Postprocess(output="a"), two)[0] == "a"
    name, how = images.postprocessing(Postprocess(activation="none", top_k=1, threshold=0.5), signature())
    assert (name, how.labels, how.activation, how.top_k, how.threshold) == ("y", (), "none", 1, 0.5)
    for section, wrong in (
        (Postprocess(output="c"), two),
        (Postprocess(), signature(outputs=(("boxes", ("N", 4, 4), ()),))),
        (Postprocess(), signature(outputs=(("a", ("N", 4), ()), ("b", ("N", 2), ())))),
    ):
        with pytest.raises(ConfigError, match="one output of scores"):
            images.postprocessing(section, wrong)


def problems(folder: Path, *changes: tuple[str, str]) -> list[str]:
    text = YAML
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "net.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(folder / "net.yaml")
    return [str(problem).removeprefix(f"{folder / 'net.yaml'}:") for problem in caught.value.problems]


def test_problems_are_located(tmp_path: Path) -> None:
    section = ("samples:", "preprocess: {resize: [9, 9]}\npostprocess: {output: z}\nsamples:")
    (found,) = problems(tmp_path, section)
    assert found.startswith("7:")
    assert "input x is 8x8; images are made 9x9" in found
    section = ("samples:", "preprocess: {}\npostprocess: {output: z}\nsamples:")
    (found,) = problems(tmp_path, section)
    assert found.startswith("8:")
    assert "one output of scores" in found


def test_max_pixels_is_no_more_than_pillow_opens(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, ("samples:", "preprocess: {max_pixels: 178956971}\nsamples:"))
    assert found.startswith("7:")
    assert "178956970" in found


def test_what_preprocess_says_is_not_said_twice(tmp_path: Path) -> None:
    changes = (("samples:", "preprocess: {}\nsamples:"), ("digits}", "digits, image_size: [8, 8], mean: [0.5]}"))
    found = problems(tmp_path, *changes)
    assert len(found) == 2
    assert all("not to be set beside `preprocess`" in text for text in found)


def test_the_defaults_of_the_schema_are_those_of_a_plain_image() -> None:
    spec = signature().inputs[0]
    assert images.of_section(Preprocess(), signature()) == images.plain(spec, "NCHW", 3, (8, 8))
    assert replace(images.plain(spec, "NCHW", 3, None), resize=(8, 8)) == images.plain(spec, "NCHW", 3, (8, 8))
