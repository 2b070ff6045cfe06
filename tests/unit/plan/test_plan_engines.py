"""Which precisions and engines are planned, and what keeps an engine from being built."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.base.errors import ConfigError
from pipeline.machine import environment, tensorrt_flavours
from pipeline.machine.environment import Gpu
from tests.unit.plan.planned import DEPENDENCIES, PRECISIONS, by_key, plan

A100 = Gpu(name="A100", driver="1", capability="sm_80")


def machine(patch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> None:
    """This machine, changed."""
    here = replace(environment.probe(folder), **changes)
    patch.setattr(environment, "probe", lambda folder: here)


def test_a_precision_is_made_for_what_will_run_it(tmp_path: Path) -> None:
    made = by_key(plan(tmp_path, text=PRECISIONS))
    assert made["onnx"].reduction is None
    assert made["onnx"].steps == (made["onnx"].export, made["onnx"].parity)
    fp16, int8, engine = (made[key].reduction for key in ("fp16", "int8", "trt_int8"))
    assert (fp16.precision, fp16.consumer, fp16.keep_ops, fp16.calibration) == ("fp16", "onnxruntime", ("Gemm",), None)
    assert (int8.consumer, int8.calibration.method, int8.calibration.samples) == ("onnxruntime", "entropy", 64)
    assert (engine.consumer, engine.calibration.method, engine.repair, int8.repair.attempts) == (
        "tensorrt", "entropy", None, 4)  # fmt: skip
    assert (int8.reduce_range, engine.reduce_range) == (environment.probe(tmp_path).cpu.saturates_int8, False)
    assert made["int8"].reduce.key != made["trt_int8"].reduce.key
    assert made["int8"].how.startswith("from onnx → int8 U8S8 for onnxruntime")
    assert made["trt_int8"].how.startswith("from onnx → int8 S8S8 for tensorrt, entropy over 64 samples → tensorrt_rtx")
    assert made["fp16"].tolerance.max_scaled > made["onnx"].tolerance.max_scaled == 0


def test_an_engine_is_built_from_the_judged_graph(tmp_path: Path) -> None:
    made = by_key(plan(tmp_path, text=PRECISIONS))
    fp16 = made["trt_fp16"]
    assert (fp16.kind, fp16.format, fp16.engine.spec.file_name) == ("tensorrt_rtx", "tensorrt", "model_sm80.engine")
    assert fp16.engine.file_names == {"8.0": "model_sm80.engine"}
    assert fp16.engine.step.upstream == {"graph": fp16.reduce}
    (profile,) = fp16.engine.spec.profiles
    assert (profile["x"].min, profile["x"].opt, profile["x"].max) == ((1, 4), (8, 4), (8, 4))
    later = made["later"]
    assert later.kind == "tensorrt_rtx"
    assert later.reduce.key == made["trt_int8"].reduce.key
    assert later.engine.spec.profiles[0]["x"].max == (2, 4)


def test_a_graph_of_fp32_is_judged_as_it_is_whatever_is_built_from_it(tmp_path: Path) -> None:
    text = PRECISIONS.replace("  ts:", "  rtx: {from: onnx, format: tensorrt, engine: {flavour: tensorrt_rtx}}\n  ts:")
    for flavour in ("tensorrt", "tensorrt_rtx"):
        made = by_key(plan(tmp_path, text=text.replace("tensorrt_rtx", flavour)))
        assert made["rtx"].kind == flavour
        assert made["rtx"].parity.function == "pipeline.formats.onnx.judging:judge"
    assert made["ts"].parity.function == "pipeline.formats.torchscript.runtime:judge"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_default_gpus_of_an_engine_can_compute_what_stays_fp32(tmp_path: Path, precision: str) -> None:
    overrides = ("variants.trt_fp16.engine={flavour: tensorrt_rtx}", f"variants.trt_fp16.precision={precision}")
    measured = {"trt_fp16": {"x.npy": "bb"}, **DEPENDENCIES.calibration_digests}
    made = by_key(plan(tmp_path, *overrides, text=PRECISIONS, calibration_digests=measured))
    assert made["trt_fp16"].engine.spec.gpus == ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("variants.trt_fp16.engine.gpus=[sm_90]", "variants.trt_fp16.engine.gpus"),
        ("variants.trt_fp16.engine.gpus=[sm_99]", "variants.trt_fp16.engine.gpus"),
        ("variants.trt_fp16.engine.refit=true", "variants.trt_fp16.engine.refit"),
        ("variants.trt_int8.engine={gpus: [sm_90]}", "variants.trt_int8.engine.gpus"),  # told once, though inherited
        ("variants.trt_fp16.engine.profiles=[{N: [2, 4, 8]}]", "expected min 1 for the batch dimension N; found 2"),
        ("variants.trt_fp16.engine.profiles=[{N: [1, 4, 4]}]", "max_batch_size is 8: expected max N of at least that"),
        ("variants.trt_fp16.engine.profiles=[{N: [1, 9, 8]}]", "expected min <= opt <= max; found [1, 9, 8]"),
    ],
)
def test_engines_that_cannot_be_built_are_refused_with_their_place(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, override, text=PRECISIONS)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("gpu", "bindings", "obstacle"),
    [
        (None, True, "this machine has no GPU"),
        (Gpu(name="H200", driver="1", capability="sm_90"), True, "the GPU here is sm_90, and the engine is for sm_80"),
        (A100, False, "cuda-bindings is not installed: pip install 'model-repository-pipeline[gpu]'"),
        (A100, True, ""),
    ],
)
def test_an_engine_is_judged_itself_where_its_gpu_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, bindings: bool, obstacle: str
) -> None:
    machine(monkeypatch, tmp_path, gpu=gpu, cuda_bindings=bindings)
    variant = by_key(plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt_rtx", text=PRECISIONS))["trt_fp16"]
    assert variant.engine.obstacle == obstacle
    names = [step.name for step in variant.steps]
    assert names[:4] == ["export[m_onnx]", "fp16[m_trt_fp16]", "parity[m_trt_fp16]", "engine[m_trt_fp16]"]
    assert names[4:] == ([] if obstacle else ["parity[m_trt_fp16.engine]"])
    if not obstacle:
        assert variant.engine.parity.upstream["engine"] == variant.engine.step


def test_a_machine_that_cannot_build_an_engine_is_told_so(tmp_path: Path) -> None:
    made = plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt", text=PRECISIONS)
    assert any(
        row.startswith("m_trt_fp16: tensorrt: not installed; pip install 'tensorrt==10.5.0.*'")
        for row in made.missing_for_engines
    )
    assert made.missing_to_build == ()


@pytest.fixture
def classic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine with an A100 and the TensorRT of Triton 24.10, and the flavour in the YAML."""
    machine(monkeypatch, tmp_path, gpu=A100)
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.5.0")
    return "variants.trt_fp16.engine.flavour=tensorrt"


def test_a_gpu_that_the_machine_does_not_have_is_told_before_the_build(tmp_path: Path, classic: str) -> None:
    made = plan(tmp_path, classic, "variants.trt_fp16.engine.gpus=[sm_80, sm_89]", text=PRECISIONS)
    assert [row for row in made.missing_for_engines if "builds engines on the GPU they are for (sm_89)" in row]
    assert not plan(tmp_path, classic, text=PRECISIONS).missing_for_engines


@pytest.mark.parametrize(
    ("override", "key", "message"),
    [
        ("variants.trt_fp16.engine.gpus=[sm_33]", ".gpus", "it builds for sm_70 and later"),
        ("variants.trt_fp16.engine.hardware_compatibility=ampere_plus", ".gpus", "leave one of the two out"),
    ],
)
def test_what_classic_tensorrt_cannot_do_is_told(
    tmp_path: Path, classic: str, override: str, key: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, classic, override, text=PRECISIONS)
    (problem,) = caught.value.problems
    assert problem.key == f"variants.trt_fp16.engine{key}"
    assert message in problem.message


def test_an_engine_that_the_target_could_not_load_says_what_to_do(
    tmp_path: Path, classic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compatible = "variants.trt_fp16.engine.version_compatible=true"
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.16.1")
    for overrides in ([classic], [classic, compatible]):  # a later TensorRT's engine is not compatible either
        with pytest.raises(ConfigError) as caught:
            plan(tmp_path, *overrides, text=PRECISIONS)
        message = next(row.message for row in caught.value.problems if row.key == "variants.trt_fp16.engine")
        assert "the engine would be built by TensorRT 10.16.1, and Triton 24.10's container has 10.5.0.18" in message
        assert ": pip install 'tensorrt==10.5.0.*', build it in nvcr.io/nvidia/tensorrt:24.10-py3, or " in message
    monkeypatch.setattr(tensorrt_flavours, "installed", lambda name: "10.4.0")
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, classic, compatible, text=PRECISIONS)
    assert "trt_fp16" not in "".join(problem.key for problem in caught.value.problems)


def test_an_engines_key_holds_all_that_decides_it(
    tmp_path: Path, classic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = by_key(plan(tmp_path, classic, text=PRECISIONS))["trt_fp16"].engine.step
    assert step.arguments["gpu"] == {"name": "A100", "capability": "sm_80"}
    assert "tensorrt-cu13-libs" in step.tools
    rtx = by_key(plan(tmp_path, "variants.trt_fp16.engine.flavour=tensorrt_rtx", text=PRECISIONS))["trt_fp16"]
    assert "tensorrt-rtx-cu12-libs" in rtx.engine.step.tools
    machine(monkeypatch, tmp_path, gpu=replace(A100, capability="sm_86"))
    assert by_key(plan(tmp_path, classic, text=PRECISIONS))["trt_fp16"].engine.step.key != step.key
