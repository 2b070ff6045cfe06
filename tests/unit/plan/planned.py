"""Plans of small configurations, for several test files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import plan as planning
from pipeline.config.load import load
from pipeline.machine import environment
from pipeline.plan import BuildPlan, Dependencies, DeploymentPlan

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 2], labels: [a, b]}, raw: {shape: [N, 2], labels: source}}
samples: {from: {arrays: x.npy}}
variants:
  onnx: {format: onnx}
  two: {from: onnx, triton: {instance_group: [{count: 2, kind: KIND_CPU}], dynamic_batching: {preserve_ordering: true}}}
  ts: {format: torchscript, triton: {max_batch_size: 2}}
triton:
  target: "24.10"
  max_batch_size: 8
  dynamic_batching: {max_queue_delay_microseconds: 5}
"""

DEPENDENCIES = Dependencies(
    source_digests={"net.py": "aa"},
    source_tools=("torch",),
    samples_digests={"x.npy": "bb"},
    calibration_digests={key: {"x.npy": "bb"} for key in ("int8", "trt_int8", "later")},
)
PRECISIONS = YAML.replace(
    "  ts: {format",
    """  fp16: {from: onnx, precision: fp16, keep_fp32: {ops: [Gemm]}}
  int8: {from: onnx, precision: int8, calibration: {method: entropy, samples: 64}}
  trt_fp16: {from: onnx, format: tensorrt, precision: fp16, engine: {gpus: [sm_80]}}
  trt_int8: {from: int8, format: tensorrt, repair: off}
  later: {from: trt_int8, triton: {max_batch_size: 2}}
  ts: {format""",
)


def plan(folder: Path, *overrides: str, text: str = YAML, keys: tuple[str, ...] = (), **changes: Any) -> BuildPlan:
    (folder / "net.py").touch()
    (folder / "x.npy").touch()
    (folder / "m.yaml").write_text(text)
    dependencies = Dependencies(**{**{name: getattr(DEPENDENCIES, name) for name in DEPENDENCIES.__slots__}, **changes})
    return planning.make(
        load(folder / "m.yaml", overrides),
        dependencies,
        environment.probe(folder),
        repository=folder / "repo",
        work_dir=folder,
        keys=keys,
    )


def deployment(made: BuildPlan, server: str) -> DeploymentPlan | None:
    return next((row for row in made.deployments if row.server == server), None)


def by_key(made: BuildPlan) -> dict[str, Any]:
    return {variant.key: variant for variant in made.variants}
