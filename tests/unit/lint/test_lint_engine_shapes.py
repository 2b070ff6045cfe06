"""Each rule on what an engine takes and gives: its tensors, shapes and profiles, against config.pbtxt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .lint_engines import CONFIG, RTX_CONFIG, findings, plain, rtx, sidecar
from .lint_repository import only, replaced

Change = Callable[[dict[str, Any]], object]


def profile(**changes: list[int]) -> Change:
    return lambda facts: facts["profiles"][0]["x"].update(changes)


CASES = [
    ("engine-profile-batch", "error", profile(min=[2, 3, 16]), "batches of 2 and more"),
    ("engine-profile-batch", "error", profile(max=[4, 3, 32]), "max_batch_size is 8 (server#4445)"),
    ("engine-profile-range", "error", profile(min=[1, 4, 16], opt=[1, 4, 16], max=[8, 4, 32]),
     "profile 0, input 'x' takes [1, 4, 16] to [8, 4, 32]; config.pbtxt gives it [-1, 3, -1] with its batch"),
    ("engine-profile-range", "error", profile(min=[1, 16], opt=[1, 16], max=[8, 32]), "[1, 16] to [8, 32]"),
    ("engine-profile-fixed", "warning",
     lambda facts: [span["x"].update({key: [*span["x"][key][:2], 32] for key in span["x"]})
                    for span in facts["profiles"]],
     "is [3, -1] by config.pbtxt, and the engine's profiles take [3, 32] only"),
    ("engine-tensor-unknown", "error", lambda facts: facts["profiles"][1].update(z=facts["profiles"][1]["x"]),
     "needs the input 'z'"),
    ("engine-tensor-unknown", "error", lambda facts: facts["inputs"].append({"name": "z"}), "needs the input 'z'"),
    ("engine-tensor-unknown", "error", lambda facts: facts["inputs"].clear(), "has the input 'x'; the engine has none"),
    ("engine-tensor-unknown", "error", lambda facts: facts["outputs"][0].update(name="z"),
     "has the output 'y'; the engine has z"),
    ("engine-data-type", "error", lambda facts: facts["inputs"][0].update(dtype="float16"),
     "is TYPE_FP32 in config.pbtxt and TYPE_FP16 in the engine"),
    ("engine-data-type", "error", lambda facts: facts["outputs"][0].update(dtype="int64"), "TYPE_INT64"),
    ("engine-batch-dimension", "error", lambda facts: facts["inputs"][0].update(shape=[1, 3, -1]),
     "max_batch_size is 8, and input 'x' is [1, 3, -1] in the engine"),
    ("engine-shape", "error", lambda facts: facts["inputs"][0].update(shape=["N", 3, 224]), "[-1, 3, 224]"),
    ("engine-shape", "error", lambda facts: facts["outputs"][0].update(shape=["N", 5]), "output 'y' is [-1, 4]"),
    ("engine-shape", "error", lambda facts: facts["outputs"][0].update(shape=["N", 4, 1]), "[-1, 4, 1]"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "severity", "change", "reason"), CASES)
def test_an_engine_that_is_not_what_is_configured(
    tmp_path: Path, rule: str, severity: str, change: Change, reason: str
) -> None:
    facts = copy.deepcopy(sidecar())
    change(facts)
    found = findings(tmp_path, plain(facts=facts))
    assert only(found) == (rule, "trt/1/model.plan", severity)
    assert reason in found[0].reason


def test_a_profile_the_engine_does_not_have(tmp_path: Path) -> None:
    found = findings(tmp_path / "a", plain(replaced(CONFIG, '"1"', '"2"')))
    assert only(found) == ("engine-profile-index", "trt/config.pbtxt", "error")
    assert "names profile 2; trt/1/model.plan has 2, numbered from 0" in found[0].reason
    found = findings(tmp_path / "b", plain(facts=sidecar(profiles=[])))  # fixed shapes: one profile of its own
    assert "names profile 1;" in found[0].reason
    found = findings(tmp_path / "c", plain(replaced(CONFIG, '"1"', f'"{"9" * 5000}"')))
    assert only(found)[0] == "engine-profile-index"


def warmed(size: int, config: str = CONFIG, batch_size: int = 1) -> str:
    """A configuration with a warmup sample of so many columns."""
    data = f"data_type: TYPE_FP32 dims: [ 3, {size} ] zero_data: true"
    return f'{config} model_warmup {{ name: "w" batch_size: {batch_size} inputs {{ key: "x" value {{ {data} }} }} }}'


@pytest.mark.parametrize(
    ("size", "profile", "fits"),
    [(15, '"0", "1"', False), (16, '"0", "1"', True), (64, '"0", "1"', True), (65, '"0", "1"', False),
     (64, '"0"', False), (64, "", False), (16, "", True), (16, '"1"', False)],
)  # fmt: skip
def test_a_warmup_sample_that_the_engine_must_refuse(tmp_path: Path, size: int, profile: str, fits: bool) -> None:
    config = replaced(CONFIG, '"0", "1"', profile) if profile else replaced(CONFIG, 'profile: [ "0", "1" ]', "")
    found = findings(tmp_path, plain(warmed(size, config)))
    if fits:
        assert found == []
    else:
        assert only(found) == ("warmup-profile", "trt/config.pbtxt", "error")
        assert f"warmup sample 'w' has x [1, 3, {size}], and no profile of trt/1/model.plan" in found[0].reason


def test_rtx_instances_use_all_profiles_and_a_skipped_warmup_is_no_request(tmp_path: Path) -> None:
    assert findings(tmp_path / "rtx", rtx(warmed(64, RTX_CONFIG))) == []
    assert only(findings(tmp_path / "bad", rtx(warmed(65, RTX_CONFIG))))[0] == "warmup-profile"
    assert only(findings(tmp_path / "none", plain(warmed(65, batch_size=0))))[0] == "warmup-skipped"


def test_profiles_that_fix_different_sizes_leave_the_dimension_open(tmp_path: Path) -> None:
    spans = [{"x": {key: [batch, 3, size] for key, batch in (("min", 1), ("opt", 8), ("max", 8))}} for size in (16, 32)]
    assert findings(tmp_path, plain(facts=sidecar(profiles=spans))) == []


def test_a_configuration_may_fix_what_the_engine_leaves_open(tmp_path: Path) -> None:
    assert findings(tmp_path / "in", plain(replaced(CONFIG, "[ 3, -1 ]", "[ 3, 32 ]"))) == []
    found = findings(tmp_path / "out", plain(replaced(CONFIG, "[ 3, -1 ]", "[ 3, 64 ]")))
    assert only(found) == ("engine-profile-range", "trt/1/model.plan", "error")
    assert "profile 0" in found[0].reason


def test_an_engine_for_lone_requests(tmp_path: Path) -> None:
    alone = {"min": [1, 3, 16], "opt": [1, 3, 16], "max": [1, 3, 32]}
    config = replaced(CONFIG, "max_batch_size: 8", "max_batch_size: 1")
    assert findings(tmp_path, plain(config, sidecar(profiles=[{"x": alone}] * 2))) == []


def test_ranges_of_a_ragged_input_are_of_all_requests_together(tmp_path: Path) -> None:
    config = replaced(CONFIG, "dims: [ 3, -1 ]", "dims: [ 3, -1 ] allow_ragged_batch: true")
    span = {"min": [1], "opt": [64], "max": [512]}
    facts = sidecar(profiles=[{"x": span}] * 2, inputs=[{"name": "x", "dtype": "float32", "shape": [-1]}])
    assert findings(tmp_path, plain(config, facts)) == []


def test_shapes_without_batching(tmp_path: Path) -> None:
    config = replaced(CONFIG, "max_batch_size: 8", "").replace("[ 3, -1 ]", "[ 2, 3, 16 ]").replace("[ 4 ]", "[ 2, 4 ]")
    facts = sidecar(
        profiles=None, inputs=[{"name": "x", "shape": [2, 3, 16]}], outputs=[{"name": "y", "shape": [2, 4]}]
    )
    assert findings(tmp_path / "good", plain(config, facts)) == []
    found = findings(tmp_path / "bad", plain(config, {**facts, "inputs": [{"name": "x", "shape": [2, 3, 32]}]}))
    assert only(found)[0] == "engine-shape"
    assert found[0].fix == "write dims: [2, 3, 32]"


def test_a_reshape_is_what_the_engine_sees(tmp_path: Path) -> None:
    config = replaced(CONFIG, "dims: [ 3, -1 ]", "dims: [ 1, 3, -1 ] reshape { shape: [ 3, -1 ] }")
    assert findings(tmp_path, plain(config)) == []


def test_values_of_a_shape_tensor_are_no_shape(tmp_path: Path) -> None:
    config = CONFIG + 'input { name: "size" data_type: TYPE_INT32 dims: [ 2 ] is_shape_tensor: true }'
    facts = sidecar()
    facts["inputs"].append({"name": "size", "dtype": "int32", "shape": [2]})
    facts["profiles"][0]["size"] = {"min": [16, 16], "opt": [32, 32], "max": [64, 64]}
    assert findings(tmp_path, plain(config, facts)) == []
