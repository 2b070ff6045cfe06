"""Reduced precision and engines through a whole build: what is wrong is said clearly, and nothing of it is emitted."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from pipeline.base.errors import ConfigError
from pipeline.base.step import Outcome
from pipeline.base.values import VariantResult
from pipeline.build import loop as building
from pipeline.build.loop import Options
from pipeline.config.load import load
from pipeline.machine import environment
from pipeline.precision import half, int8
from pipeline.report.summary import BuildReport
from pipeline.report.terminal import Terminal
from pipeline.repository.manifest import read_manifest
from tests.integration.conftest import CONFIGS
from tests.integration.engine_graphs import TOKENS, saved
from tests.integration.in_process import InProcess

YAML = """
name: digits
source: {onnx: {file: digits.onnx}}
inputs: {image: {dtype: float32, shape: [N, 1, 8, 8], layout: NCHW}}
outputs: {logits: {dtype: float32, shape: [N, 10], labels: digits}}
samples: {from: {dataset: digits, image_size: [8, 8]}, count: 64}
variants:
  onnx: {format: onnx}
  other: %s
gates: {accuracy: {min: 0.95, max_drop: 0.02}}
triton: {max_batch_size: 16}
"""


class Bench:
    """Builds the digits with one more variant, without serving, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.repository = folder, folder / "repository"
        self.rtx_repository = folder / "repository.tensorrt_rtx"
        shutil.copyfile(CONFIGS / "models" / "digits.onnx", folder / "digits.onnx")

    def build(self, other: str, *overrides: str) -> BuildReport:
        config = self.folder / "digits.yaml"
        config.write_text(YAML % other)
        return self.run(config, *overrides)

    def run(self, config: Path, *overrides: str) -> BuildReport:
        options = Options(repository=self.repository, work_dir=self.folder / "work", serve=False)
        return building.build(load(config, overrides), options, Terminal(Console(file=io.StringIO())))

    def refused(self, other: str) -> VariantResult:
        """Build a variant that fails: its sibling is emitted, and nothing of it."""
        report = self.build(other)
        good, bad = report.variants
        assert (good.error, report.exit_code) == ("", bad.exit_code)
        assert [item.name for item in self.repository.iterdir()] == ["digits_onnx"]
        assert not self.rtx_repository.exists()
        return bad


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(building, "Local", InProcess)
    return Bench(tmp_path)


def corrupt_a_scale(model: onnx.ModelProto) -> None:
    """Make one activation scale 50 times what was measured."""
    scale = next(
        item
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        for item in model.graph.initializer
        if item.name == node.input[1]
    )
    scale.CopyFrom(numpy_helper.from_array(np.float32(50) * numpy_helper.to_array(scale), scale.name))


@pytest.mark.parametrize("other", ["{from: onnx, precision: int8, repair: off}",
                                   "{from: onnx, format: tensorrt, precision: int8, repair: off}"])  # fmt: skip
def test_a_corrupt_scale_is_refused_by_the_gates(bench: Bench, monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    quantize: Callable[..., Outcome] = int8.quantize

    def corrupted(source: Path, samples: Any, out_dir: Path, **settings: Any) -> Outcome:
        made = quantize(source, samples, out_dir, **settings)
        model = onnx.load(str(out_dir / made.file))
        corrupt_a_scale(model)
        onnx.save(model, str(out_dir / made.file))
        return made

    monkeypatch.setattr(int8, "quantize", corrupted)
    bad = bench.refused(other)
    assert bad.exit_code == 4
    assert "parity[digits_other]: refused by a gate" in bad.error
    assert bad.parity is not None
    assert not bad.parity.passed


def test_an_fp32_graph_called_fp16_is_no_engine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def mislabelled(source: Path, out_dir: Path, **_: Any) -> Outcome:
        shutil.copyfile(source, out_dir / "model.onnx")
        return Outcome(file="model.onnx", values={"precision": "fp16"})

    monkeypatch.setattr(half, "convert", mislabelled)
    bad = bench.refused("{from: onnx, format: tensorrt, precision: fp16, engine: {gpus: [sm_80]}}")
    assert bad.exit_code == 4
    assert "asked for fp16" in bad.error
    assert "Float" in bad.error


def test_too_little_to_calibrate_on_is_no_int8(bench: Bench) -> None:
    few = "{arrays: few.npz}"
    np.savez(bench.folder / "few.npz", image=np.random.default_rng(0).random((1, 1, 8, 8), np.float32))
    bad = bench.refused(f"{{from: onnx, precision: int8, calibration: {{from: {few}}}}}")
    assert bad.exit_code == 4
    assert "calibration: 1 samples are left to calibrate on; 16 are the least" in bad.error
    assert "found: 1 in all\n  where: " in bad.error
    assert "digits.yaml:9:54" in bad.error
    assert "name a larger data set under `calibration.from`" in bad.error


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            "{from: onnx, precision: int8, calibration: {samples: 1}}",
            "expected an integer >= 16 and <= 100000; found 1",
        ),
        ("{from: onnx, precision: bf16}", "bf16 is for tensorrt"),
        ("{from: onnx, format: tensorrt, engine: {gpus: [sm_75]}}", "FP32 GEMM is not supported"),
        ("{from: onnx, format: tensorrt, engine: {gpus: [sm_90]}}", "sm_90"),
        ("{from: onnx, format: tensorrt, engine: {gpus: [sm_33]}}", "sm_33"),
        ("{from: onnx, format: tensorrt, engine: {profiles: [{N: [1, 4, 8]}]}}", "max_batch_size is 16"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(bench: Bench, other: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bench.build(other)
    assert message in str(caught.value)
    assert "digits.yaml:" in str(caught.value)
    assert not bench.repository.exists()
    assert not (bench.folder / "work").exists()


def test_classic_tensorrt_without_a_gpu_is_a_lack_or_a_row_that_says_so(bench: Bench) -> None:
    bad = bench.refused("{from: onnx, format: tensorrt, engine: {flavour: tensorrt}}")
    assert bad.exit_code == 3
    assert "pip install 'tensorrt==10.5.0.*'" in bad.error
    report = bench.build("{from: onnx, format: tensorrt, engine: {flavour: tensorrt, when_unavailable: skip}}")
    assert report.exit_code == 0
    assert "pip install 'tensorrt==10.5.0.*'" in report.variants[1].skipped
    assert (report.variants[1].entry, report.variants[1].error) == (None, "")


def test_repair_keeps_what_is_to_blame_and_says_what_it_bought(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # weights of 7 bits on every machine, as without VNNI: those of 8 bits are within the limit from the start
    monkeypatch.setattr(environment.Cpu, "saturates_int8", property(lambda cpu: True))
    strict = "gates: {parity: {max_abs: 0.15, max_rel: 0.0, max_scaled: 0.0}}"
    bad = bench.refused(f"{{from: onnx, precision: int8, repair: off, {strict}}}")
    assert "refused by a gate" in bad.error
    report = bench.build(f"{{from: onnx, precision: int8, repair: {{max_share: 0.7}}, {strict}}}")
    assert report.exit_code == 0, report.variants[1].error
    (note,) = [note for note in report.variants[1].notes if note.startswith("repair: kept ")]
    assert "nodes in fp32" in note
    manifest = read_manifest(bench.repository, "digits_other", 1)
    assert manifest is not None
    repair = manifest["properties"]["repair"]
    assert repair["passed"] is True
    assert repair["kept"]
    assert repair["after"]["max_abs"] < repair["before"]["max_abs"]


def test_an_fp16_graph_whose_nodes_have_no_names_is_repaired(bench: Bench) -> None:
    strict = "gates: {parity: {max_abs: 0.004, max_rel: 0.0, max_scaled: 0.0}}"
    bad = bench.refused(f"{{from: onnx, precision: fp16, repair: off, {strict}}}")
    assert "refused by a gate" in bad.error
    report = bench.build(f"{{from: onnx, precision: fp16, {strict}}}")
    assert report.exit_code == 0, report.variants[1].error
    manifest = read_manifest(bench.repository, "digits_other", 1)
    assert manifest is not None
    repair = manifest["properties"]["repair"]
    assert (repair["passed"], repair["convertible"]) == (True, 4)
    assert {item["node"] for item in repair["kept"]} == {"hidden", "logits"}


@pytest.mark.parametrize(("precision", "max_abs"), [("fp16", 0.007), ("int8", 0.1)])
def test_an_engine_of_a_repaired_graph(bench: Bench, precision: str, max_abs: float) -> None:
    strict = f"gates: {{parity: {{max_abs: {max_abs}, max_rel: 0.0, max_scaled: 0.0}}}}"
    report = bench.build(f"{{from: onnx, format: tensorrt, precision: {precision}, {strict}}}")
    assert report.exit_code == 0, report.variants[1].error
    assert any(note.startswith("repair: kept ") for note in report.variants[1].notes)
    manifest = read_manifest(bench.rtx_repository, "digits_other", 1)
    assert manifest is not None
    assert manifest["properties"]["layers"]["Float"] > 0


@pytest.mark.parametrize("kept", ["hidden", "logits"])
def test_what_is_to_stay_fp32_does_so_in_an_engine_for_the_default_gpus(bench: Bench, kept: str) -> None:
    """The nodes of this graph have no names: they go by their outputs'."""
    report = bench.build(f"{{from: onnx, format: tensorrt, precision: fp16, keep_fp32: {{nodes: [{kept}]}}}}")
    assert report.exit_code == 0, report.variants[1].error
    assert not any("not by the engine's builder" in note for note in report.variants[1].notes)


def test_an_engine_records_what_it_is(bench: Bench) -> None:
    report = bench.build("{from: onnx, format: tensorrt, precision: fp16, engine: {gpus: [sm_80, sm_89]}}")
    assert report.exit_code == 0, report.variants[1].error
    manifest = read_manifest(bench.rtx_repository, "digits_other", 1)
    assert manifest is not None
    facts = manifest["properties"]
    assert (facts["flavour"], facts["precision"]) == ("tensorrt_rtx", "fp16")
    assert facts["compute_capabilities"] == ["sm_80", "sm_89"]
    assert facts["plan_sha256"] == manifest["files"]["model_sm80_sm89.engine"] == manifest["sha256"]
    assert facts["layers"]["Half"] > 0
    assert facts["profiles"] == [{"image": {"min": [1, 1, 8, 8], "opt": [16, 1, 8, 8], "max": [16, 1, 8, 8]}}]


def test_golden_samples_outside_of_the_profiles_are_no_engine_without_a_gpu_too(bench: Bench) -> None:
    saved([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.eye(8, 4, dtype=np.float32)}, bench.folder, TOKENS)
    np.savez(bench.folder / "long.npz", x=np.random.default_rng(0).random((4, 40, 8), np.float32))
    config = bench.folder / "tokens.yaml"
    config.write_text("""
name: tokens
source: {onnx: {file: model.onnx}}
inputs: {x: {shape: [N, L, 8]}}
outputs: {y: {shape: [N, L, 4]}}
samples: {from: {arrays: long.npz}}
variants:
  onnx: {format: onnx}
  trt: {from: onnx, format: tensorrt, engine: {flavour: tensorrt_rtx, profiles: [{L: [1, 4, 16]}]}}
""")
    report = bench.run(config)
    good, bad = report.variants
    assert (good.error, bad.exit_code, report.exit_code) == ("", 4, 4)
    assert "tensorrt_rtx: no optimization profile takes a sample" in bad.error
    assert "dimension 1 to be between 1 and 16 but received 40" in bad.error
    assert "tokens.yaml:9:71" in bad.error
    assert [item.name for item in bench.repository.iterdir()] == ["tokens_onnx"]
    assert not bench.rtx_repository.exists()
