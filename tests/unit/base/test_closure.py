"""What a step's key follows: the files that its function's module imports, and no others."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.base import closure
from pipeline.build.loop import Options, make_plan
from pipeline.config.load import load
from pipeline.plan import BuildPlan

PACKAGE = Path(closure.__file__).parents[1]
YAML = """
name: m
source: {train: {model: {callable: "net.py:Net"}, data: {callable: "net.py:data"}, epochs: 1}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 2]}}
variants:
  onnx: {format: onnx}
  ts: {format: torchscript}
  int8: {from: onnx, precision: int8}
  rtx: {from: onnx, format: tensorrt, precision: fp16, engine: {flavour: tensorrt_rtx}}
"""


def test_the_imports_read_of_each_file_are_those_of_its_whole_syntax_tree() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_bytes())
        whole = closure.imported(tree, path.parent.relative_to(PACKAGE.parent).parts)
        assert {name for name in whole if name.split(".")[0] == "pipeline"} <= set(closure._imports(path)), path


@pytest.mark.parametrize(
    ("module", "reached"),
    [
        ("pipeline.formats.onnx.export", "proof/comparison.py"),  # imported by what it imports
        ("pipeline.sources.onnx", "formats/onnx/onnxruntime.py"),  # imported within a function
        ("pipeline.formats.tensorrt.build", "formats/tensorrt/rtx.py"),  # imported by its name
        ("pipeline.precision.reduction", "precision/modelopt.py"),
        ("pipeline.sources.tensorflow", "formats/saved_model/training.py"),  # python -m
        ("pipeline.sources.train", "sources/__init__.py"),
    ],
)
def test_a_module_reaches_what_it_runs(module: str, reached: str) -> None:
    assert reached in closure.of_module(module)


def _forget() -> None:
    for cached in (closure.digest, closure._imports, closure._file_digest, closure._module_files):
        cached.cache_clear()


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, which keys are made from."""
    shutil.copytree(PACKAGE, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "_PACKAGE", tmp_path / "pipeline")
    yield tmp_path
    _forget()


def keys(plan: BuildPlan) -> dict[str, str]:
    _forget()
    return {step.name: step.key for step in plan.steps}


EXPORTED = {"export", "fp16", "int8", "parity", "engine"}


@pytest.mark.parametrize(
    ("changed", "moved"),
    [
        ("proof/comparison.py", EXPORTED),  # decides what an export accepts
        ("sources/augment.py", {"source", "samples", "calibration", *EXPORTED}),
        ("sources/library.py", {"source", "samples", "calibration", *EXPORTED}),  # opens what it has made
        ("precision/qdq.py", {"fp16", "int8", "parity", "engine"}),
        ("formats/tensorrt/rtx.py", {"engine"}),
        ("cli/app.py", set()),
        ("report/html.py", set()),
        ("lint/onnx.py", set()),
        ("servers/triton/config_pbtxt.py", set()),
        ("build/variant.py", set()),
        ("plan/steps.py", set()),
        ("__init__.py", set()),
    ],
)
def test_a_changed_file_moves_the_keys_of_what_runs_it(copied: Path, changed: str, moved: set[str]) -> None:
    (copied / "m.yaml").write_text(YAML)
    (copied / "net.py").touch()
    plan = make_plan(load(copied / "m.yaml"), Options(work_dir=copied / "work"))
    before = keys(plan)
    with (copied / "pipeline" / changed).open("a") as file:
        file.write("# changed\n")
    after = keys(plan)
    assert {name.partition("[")[0] for name in before if before[name] != after[name]} == moved
