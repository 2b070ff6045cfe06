import json
from typing import Any

import pytest

from pipeline.base.values import Signature, TensorSpec
from pipeline.formats.tensorrt.profiles import resolve
from pipeline.formats.tensorrt.spec import EngineSpec, from_json, to_json

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 3), layout=None),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=("N", 2), labels=("a", "b")),),
    batch="N",
)


def spec(**changes: Any) -> EngineSpec:
    values: dict[str, Any] = {
        "flavour": "tensorrt_rtx",
        "precision": "fp16",
        "signature": SIGNATURE,
        "max_batch_size": 4,
        "profiles": resolve(SIGNATURE, (), 4),
    }
    return EngineSpec(**{**values, **changes})


def test_json_gives_the_same_spec_back() -> None:
    made = spec(gpus=("sm_80", "sm_89"), workspace_bytes=1 << 20, refit=True, kept_nodes=("a", "b"))
    assert from_json(json.loads(json.dumps(to_json(made)))) == made


@pytest.mark.parametrize(
    ("flavour", "gpus", "name"),
    [
        ("tensorrt_rtx", ("sm_80", "sm_89"), "model_sm80_sm89.engine"),
        ("tensorrt_rtx", (), "model.engine"),
        ("tensorrt", ("sm_80",), "model_sm80.plan"),
        ("tensorrt", (), "model.plan"),
    ],
)
def test_the_file_is_named_after_what_can_load_it(flavour: str, gpus: tuple[str, ...], name: str) -> None:
    assert spec(flavour=flavour, gpus=gpus).file_name == name


def test_classic_tensorrt_builds_an_engine_for_each_capability_and_rtx_one_for_all() -> None:
    fleet = spec(flavour="tensorrt", gpus=("sm_80", "sm_89"))
    assert [item.file_name for item in fleet.each] == ["model_sm80.plan", "model_sm89.plan"]
    assert [item.file_name for item in spec(gpus=("sm_80", "sm_89")).each] == ["model_sm80_sm89.engine"]
    assert spec(flavour="tensorrt").each == (spec(flavour="tensorrt"),)


def test_options_are_those_asked_for() -> None:
    assert spec().options == {}
    asked = {"hardware_compatibility": "ampere_plus", "refit": True, "optimization_level": 0}
    assert spec(**asked).options == asked
