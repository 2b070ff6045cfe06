"""A whole build with engines: judged on the GPU, served by the stand-in backends and smoke-tested."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.machine.tensorrt_flavours import FlavourName
from pipeline.repository.manifest import read_manifest
from tests.integration.conftest import CONFIGS, run

pytestmark = pytest.mark.gpu

YAML = """
name: digits
source: {{onnx: {{file: digits.onnx}}}}
inputs: {{image: {{dtype: float32, shape: [N, 1, 8, 8], layout: NCHW}}}}
outputs: {{logits: {{dtype: float32, shape: [N, 10], labels: digits}}}}
samples: {{from: {{dataset: digits, image_size: [8, 8]}}, count: 48}}
variants:
  onnx: {{format: onnx}}
  fp16: {{from: onnx, format: tensorrt, precision: fp16, engine: {{flavour: {flavour}, gpus: [{gpu}]}}}}
  int8: {{from: onnx, format: tensorrt, precision: int8, engine: {{flavour: {flavour}, gpus: [{gpu}]}}}}
  two: {{from: fp16, engine: {{flavour: {flavour}, gpus: [{gpu}], profiles: [{{N: [1, 1, 16]}}, {{N: [1, 16, 16]}}]}}}}
gates: {{accuracy: {{metric: top1, max_drop: 0.01}}}}
triton: {{max_batch_size: 16, target: "26.08"}}  # its TensorRT is not known: any may build for it
"""


def test_engines_are_judged_served_and_kept(flavour: FlavourName, gpu: str, tmp_path: Path) -> None:
    shutil.copy(CONFIGS / "models" / "digits.onnx", tmp_path)
    (tmp_path / "m.yaml").write_text(YAML.format(flavour=flavour, gpu=gpu))
    done = run(tmp_path / "m.yaml", tmp_path / "built", ["--variant", "fp16", "--variant", "int8", "--variant", "two"])
    assert done.exit_code == 0, done.output
    for key in ("fp16", "int8", "two"):
        row = done.variant(f"digits_{key}")
        assert row["parity"]["passed"], row["parity"]
        assert row["accuracy"]["passed"], row["accuracy"]
        assert row["smoke"]["outcome"] == "passed", row["smoke"]
        assert not any("not run" in note for note in row["notes"])
        assert f"parity[digits_{key}.engine]" in done.report["durations_s"]
        manifest = read_manifest(Path(row["path"]).parents[1], f"digits_{key}", 1)
        assert manifest is not None
        assert manifest["parity"]["max_abs"] == row["parity"]["max_abs"]
    again = done.again()
    assert again.exit_code == 0, again.output
    assert all(again.variant(f"digits_{key}")["version"] == 1 for key in ("fp16", "int8", "two"))
    assert all(again.variant(f"digits_{key}")["cached"] for key in ("fp16", "int8", "two"))
