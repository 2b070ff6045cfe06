"""The text of a C++ program: what is the model's own is in one header, and nothing is left to fill in."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.base.values import Signature, TensorSpec
from pipeline.images.postprocessing import Postprocessing
from pipeline.images.preprocessing import Preprocessing
from pipeline.servers.libtorch import program

HOW = Preprocessing(
    formats=("jpeg", "png"),
    color="rgb",
    resize=40,
    crop=(32, 24),
    interpolation="bicubic",
    scale=255.0,
    mean=(0.485, 0.456, 0.406),
    std=(1e-5,),
    max_pixels=1_000_000,
    dtype="float32",
    layout="NCHW",
)
ANSWERS = Postprocessing(activation="exp", labels=('say "cheese"\\', "é\n1", "what??!"), top_k=3, threshold=0.25)


def signature(how: Preprocessing = HOW, *, batch: str | None = "N", shape=("N", 3, 32, 24)) -> Signature:
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("N", 3)) for name in ("features", "scores"))
    return Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape),), outputs=outputs, batch=batch, image=how
    )


def constant(text: str, name: str) -> str:
    found = re.search(rf" {name} = (.*);", text)
    assert found is not None, name
    return found[1]


def test_settings_say_how_an_image_becomes_the_input() -> None:
    text = program.settings("net_cpp", signature(), "scores", ANSWERS)
    assert constant(text, "name") == '"net_cpp"'
    assert constant(text, "formats") == '{"jpeg", "png"}'
    sizes = ("resize_height", "resize_width", "resize_shorter", "crop_height", "crop_width")
    assert [constant(text, name) for name in sizes] == ["0", "0", "40", "32", "24"]
    assert (constant(text, "channels"), constant(text, "interpolation")) == ("3", '"bicubic"')
    assert constant(text, "mean") == "{0.485f, 0.456f, 0.406f}"
    assert constant(text, "deviation") == "{1e-05f, 1e-05f, 1e-05f}"  # one value is for every channel
    assert (constant(text, "scale"), constant(text, "max_pixels")) == ("255.0f", "1000000")
    assert constant(text, "output_index") == "1"
    assert (constant(text, "activation"), constant(text, "top_k"), constant(text, "threshold")) == (
        '"exp"',
        "3",
        "0.25",
    )
    fixed = program.settings("net_cpp", signature(replace(HOW, resize=(8, 9), crop=None)), "features", ANSWERS)
    assert [constant(fixed, name) for name in sizes] == ["8", "9", "0", "0", "0"]
    assert constant(fixed, "output_index") == "0"


@pytest.mark.parametrize(("version", "number"), [("9.4", "904"), ("12.3.0", "1203"), ("13.0.0", "1300")])
def test_settings_say_which_pillow_the_model_was_judged_with(monkeypatch, version, number) -> None:
    monkeypatch.setattr(program.importlib.metadata, "version", lambda _: version)
    assert constant(program.settings("net_cpp", signature(), "scores", ANSWERS), "pillow") == number


@pytest.mark.parametrize(
    ("batch", "shape", "expected"),
    [
        ("N", ("N", 3, 32, 24), ("true", "true")),
        (None, (1, 3, 32, 24), ("false", "true")),
        (None, (3, 32, 24), ("false", "false")),
    ],
)
def test_settings_say_whether_there_is_a_batch(batch, shape, expected) -> None:
    text = program.settings("net_cpp", signature(batch=batch, shape=shape), "scores", ANSWERS)
    assert (constant(text, "batched"), constant(text, "leading_dimension")) == expected


def test_labels_are_cpp_strings_whatever_is_in_them() -> None:
    text = program.settings("net_cpp", signature(), "scores", ANSWERS)
    literals = re.findall(r'^    "(.*)",$', text, re.MULTILINE)
    decoded = [literal.encode().decode("unicode_escape").encode("latin1").decode() for literal in literals]
    assert decoded == list(ANSWERS.labels)
    assert "??" not in text  # no trigraphs for older compilers
    assert "labels = {};" in program.settings("net_cpp", signature(), "scores", replace(ANSWERS, labels=()))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 255.0, 1e-7, 58.395, 16777217.0])
def test_floats_are_exactly_what_numpy_uses(value) -> None:
    text = program.settings("net_cpp", signature(replace(HOW, scale=value)), "scores", ANSWERS)
    literal = constant(text, "scale")
    assert re.fullmatch(r"\d+(\.\d+)?(e[+-]\d+)?f", literal)
    assert "." in literal or "e" in literal  # else it would be no floating-point literal
    assert np.float32(literal[:-1]) == np.float32(value)


def test_every_file_is_complete_and_the_same_each_time() -> None:
    files = program.sources("net_cpp", signature(), "scores", ANSWERS, torch_version="2.13.0")
    assert files == program.sources("net_cpp", signature(), "scores", ANSWERS, torch_version="2.13.0")
    assert {"main.cpp", "CMakeLists.txt", "README.md", "settings.hpp", "resample.cpp"} <= set(files)
    assert b"project(net_cpp" in files["CMakeLists.txt"]
    readme = files["README.md"].decode()
    assert "2.13.0 or newer" in readme
    assert "JPEG or PNG image" in readme
    assert "1,000,000 pixels" in readme
    for name, content in files.items():
        assert not re.search(rb"@[A-Z_]+@", content), name
        included = re.findall(rb'#include "([\w.]+)"', content)
        assert {one.decode() for one in included} <= set(files), name
    compiled = {name for name in files if name.endswith(".cpp")}
    listed = re.findall(r"\w+\.cpp", files["CMakeLists.txt"].decode())
    assert sorted(listed) == sorted(compiled)
