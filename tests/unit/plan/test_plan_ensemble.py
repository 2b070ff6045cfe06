"""The ensemble's part of a plan: who answers, and which Pythons it carries Pillow for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import plan as planning
from pipeline.config.load import load
from pipeline.machine import environment, tensorrt_flavours
from pipeline.plan import BuildPlan, Dependencies, DeploymentPlan
from tests.unit.plan.planned import deployment

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {image: {shape: [N, 1, 8, 8]}}
preprocess: {}
outputs: {y: {shape: [N, 2], labels: [a, b]}}
postprocess: {}
samples: {from: {dataset: digits}}
variants:
  trt: {from: onnx, format: tensorrt, engine: {gpus: [sm_80]}}
  onnx: {format: onnx}
  fp16: {from: onnx, precision: fp16}
"""


def plan(folder: Path, *overrides: str, keys: tuple[str, ...] = ()) -> BuildPlan:
    (folder / "net.py").touch()
    (folder / "m.yaml").write_text(YAML)
    nothing: dict[str, Any] = {"source_digests": {}, "samples_digests": {}, "calibration_digests": {}}
    return planning.make(
        load(folder / "m.yaml", overrides),
        Dependencies(**nothing, source_tools=()),
        environment.probe(folder),
        repository=folder / "repo",
        work_dir=folder,
        keys=keys,
    )


def made(plan: BuildPlan) -> DeploymentPlan:
    ensemble = deployment(plan, "triton")
    assert ensemble is not None
    return ensemble


def test_the_first_variant_that_runs_on_a_cpu_answers(tmp_path: Path) -> None:
    found = plan(tmp_path)
    ensemble = made(found)
    assert ensemble.members == ("m_preprocess", "m_onnx", "m_postprocess")
    assert (ensemble.key, ensemble.identifier, ensemble.format, ensemble.server) == ("m", "m", "ensemble", "triton")
    assert found.rows[-1] is ensemble
    assert len(found.rows) == 4


@pytest.mark.parametrize(("key", "precision"), [("fp16", "fp16"), ("trt", "fp32")])
def test_the_variant_that_is_named_answers(tmp_path: Path, key: str, precision: str) -> None:
    ensemble = made(plan(tmp_path, f"ensemble.from={key}"))
    assert ensemble.variant.key == key
    assert ensemble.precision == precision


def test_what_no_container_loads_has_a_repository_of_its_own(tmp_path: Path) -> None:
    found = plan(tmp_path, "variants.trt.engine.flavour=tensorrt_rtx")
    assert [variant.root.name for variant in found.variants] == ["repo.tensorrt_rtx", "repo", "repo"]
    assert made(found).root == found.repository == tmp_path / "repo"
    asked = plan(tmp_path, "variants.trt.engine.flavour=tensorrt_rtx", "ensemble.from=trt")
    assert made(asked).root == tmp_path / "repo.tensorrt_rtx"  # beside the engine that it asks
    assert asked.roots == (tmp_path / "repo", tmp_path / "repo.tensorrt_rtx")


def test_an_engine_that_a_container_loads_is_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.5.0")
    found = plan(tmp_path, "variants.trt.engine.flavour=tensorrt")
    assert {variant.root for variant in found.variants} == {tmp_path / "repo"}


def test_without_its_variant_or_its_sections_there_is_none(tmp_path: Path) -> None:
    assert deployment(plan(tmp_path, keys=("fp16",)), "triton") is None
    assert deployment(plan(tmp_path, keys=("fp16", "onnx")), "triton") is not None
    bare = plan(tmp_path, "postprocess=null")
    assert bare.deployments == ()
    assert bare.rows == bare.variants


def test_pillow_is_for_this_python_and_the_container_s(tmp_path: Path) -> None:
    here = ".".join(environment.probe(tmp_path).python_version.split(".")[:2])
    found = plan(tmp_path, "triton.target='24.10'")
    assert [(one.arguments["python"], one.arguments["here"]) for one in made(found).steps] == [
        (here, True),
        ("3.10", False),
    ]
    assert [step.name for step in found.steps][-2:] == [f"pillow[{here}]", "pillow[3.10]"]
    assert len({one.key for one in made(found).steps}) == 2
    unknown = made(plan(tmp_path, "triton.target='24.11'"))
    assert [one.arguments["python"] for one in unknown.steps] == [here]
