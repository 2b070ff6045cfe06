from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipeline.base.errors import ConfigError
from pipeline.machine.target import (
    has_later_tensorrt,
    limits,
    releases,
    tensorrt_conflict,
    tensorrt_image,
    tensorrt_requirement,
)


def test_the_default_release_has_the_limits_of_its_onnx_runtime() -> None:
    found = limits("24.10")
    assert (found.triton, found.onnxruntime, found.python) == ("2.51.0", "1.19.2", "3.10")
    assert (found.max_opset, found.max_ir_version) == (21, 10)


@pytest.mark.parametrize(
    ("release", "triton", "onnxruntime", "opset", "ir_version"),
    [
        ("24.01", "2.42.0", "1.16.3", 19, 9),
        ("25.03", "2.56.0", "1.21.0", 22, 10),
        ("25.08", "2.60.0", "1.23.0", 23, 11),
        ("26.08", "2.72.0", "1.28.0", 26, 13),
    ],
)
def test_other_releases(release: str, triton: str, onnxruntime: str, opset: int, ir_version: int) -> None:
    found = limits(release)
    assert (found.triton, found.onnxruntime) == (triton, onnxruntime)
    assert (found.max_opset, found.max_ir_version) == (opset, ir_version)


def test_releases_are_in_order_and_limits_never_fall() -> None:
    names = releases()
    assert list(names) == sorted(names)
    assert len(set(names)) == len(names)
    rows = [limits(name) for name in names]
    assert [row.release for row in rows] == list(names)
    for older, newer in itertools.pairwise(rows):
        assert newer.max_opset >= older.max_opset
        assert newer.max_ir_version >= older.max_ir_version


def test_an_unknown_python_is_said_to_be_unknown() -> None:
    assert limits("24.11").python is None


def test_no_release_is_given_a_tensorrt_that_no_source_says() -> None:
    known = {name: limits(name).tensorrt for name in releases() if limits(name).tensorrt}
    assert set(known) == {"24.08", "24.10", "24.12", "25.01"}
    assert known["24.10"] == "10.5.0.18"
    # That of the trtllm image (10.14.1.48 for 26.07) is not that of the -py3 image.
    assert tensorrt_conflict(limits("26.07"), "10.14.1") == ""
    assert tensorrt_image(limits("26.07")) == "nvcr.io/nvidia/tensorrt:26.07-py3"


def test_pip_is_asked_for_the_tensorrt_of_the_release() -> None:
    assert tensorrt_requirement(limits("24.10")) == "tensorrt==10.5.0.*"
    assert tensorrt_requirement(limits("26.07")) == "tensorrt"


@pytest.mark.parametrize(
    ("has", "built", "loads"),
    [
        ("10.14.1.48", "10.14.1.48", True),
        ("10.14.1.48", "10.14.1", True),
        ("10.14.1.48", "10.14.1.post1", True),  # as PyPI's 10.7.0.post1
        ("10.14.1.48", "unknown", True),  # installed without metadata: nothing is guessed
        ("10.14", "10.14.1", True),
        ("10.14.1.48", "10.14.1.49", False),
        ("10.14.1", "10.14.2", False),
        ("10.14.1", "10.4.1", False),
        ("10.14.1", "11.4.0", False),
    ],
)
def test_an_engine_loads_in_the_tensorrt_that_built_it(has: str, built: str, loads: bool) -> None:
    conflict = tensorrt_conflict(replace(limits("26.07"), tensorrt=has), built)
    assert (conflict == "") is loads
    if not loads:
        assert f"the engine was built by TensorRT {built}, and Triton 26.07's container has {has};" in conflict


@pytest.mark.parametrize(
    ("has", "built", "later"),
    [
        ("10.14.1", "10.9.0", True),
        ("11.0.0", "10.14.1", True),
        ("10.14.1", "10.14.1", False),
        ("10.14.1", "10.14.2", False),
        ("10.14.1", "11.0.0", False),
        (None, "10.14.1", False),
        ("10.14.1", "10.9.0.post1", True),
        ("10.14.1", "unknown", False),
    ],
)
def test_a_later_tensorrt_loads_what_is_version_compatible(has: str | None, built: str, later: bool) -> None:
    assert has_later_tensorrt(replace(limits("26.07"), tensorrt=has), built) is later


@pytest.mark.parametrize(
    ("release", "nearest"), [("24.1", "24.10"), ("27.01", "26.08"), ("23.09", "24.01"), ("", "24.01")]
)
def test_an_unknown_release_is_refused_with_the_range_and_the_nearest(release: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limits(release)
    assert caught.value.exit_code == 2
    assert "24.01 to 26.08" in str(caught.value)
    assert f'"{nearest}"' in caught.value.hint
