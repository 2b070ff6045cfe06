"""A fleet of engines, with the child and the proof played: no machine here has the GPUs of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import MissingError
from pipeline.base.step import Outcome
from pipeline.formats.tensorrt import build
from pipeline.formats.tensorrt.spec import EngineSpec
from pipeline.machine import tensorrt_flavours

from .test_spec import spec


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def run(job: Mapping[str, Any], *_: Any) -> dict[str, Any]:
        (gpu,) = job["spec"]["gpus"]
        if gpu == "sm_70":
            raise MissingError("no such GPU here")
        Path(job["plan"]).write_text(f"plan for {gpu}")
        return {"gpu": gpu}

    def proven(result: Mapping[str, Any], one: EngineSpec, onnx: Path, plan: Path, log: Path) -> Any:
        assert plan.name == one.file_name
        return {"compute_capabilities": [result["gpu"]], "identity": f"id {result['gpu']}"}

    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "11.4.0")
    monkeypatch.setattr(build, "_run", run)
    monkeypatch.setattr(build, "_proven", proven)
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def fleet(out: Path, *gpus: str) -> Outcome:
    return build.build(
        out.parent / "model.onnx",
        spec(flavour="tensorrt", gpus=gpus),
        out,
        timing_cache=None,
        log_path=out.parent / "log",
        timeout_s=1.0,
        progress=lambda *_: None,
    )


def test_classic_tensorrt_gives_a_plan_and_a_sidecar_per_capability(out: Path) -> None:
    made = fleet(out, "sm_80", "sm_89")
    assert {item.name: item.read_text() for item in out.glob("*.plan")} == {
        "model_sm80.plan": "plan for sm_80",
        "model_sm89.plan": "plan for sm_89",
    }
    assert json.loads((out / "model_sm89.plan.json").read_text())["compute_capabilities"] == ["sm_89"]
    assert (made.file, made.notes) == ("model_sm80.plan", ())
    assert made.values["compute_capabilities"] == ["sm_80", "sm_89"]
    assert made.values["engines"]["model_sm89.plan"]["identity"] == "id sm_89"
    assert made.values["identity"] == fleet(out, "sm_89", "sm_80").values["identity"]


def test_a_fleet_is_whole_or_not_there(out: Path) -> None:
    with pytest.raises(MissingError, match="no such GPU here"):
        fleet(out, "sm_80", "sm_70")
    assert list(out.iterdir()) == []
