"""Variants made side by side of their plan's steps, by an executor that answers at once."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Made, Outcome, Task
from pipeline.base.values import ParityResult, Progress
from pipeline.build import variant as making
from pipeline.build.loop import Options, make_plan
from pipeline.build.run import Run
from pipeline.build.steps import Steps
from pipeline.config.load import load
from pipeline.formats.tensorrt.failures import absent
from pipeline.machine.tensorrt_flavours import flavour
from pipeline.proof.comparison import FP32
from pipeline.proof.parity import Judgement
from pipeline.report.terminal import Terminal

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 2]}}
samples: {from: {arrays: x.npy}}
variants:
  onnx: {format: onnx}
  two: {from: onnx}
  fp16: {from: onnx, precision: fp16}
  ts: {format: torchscript}
  rtx: {from: onnx, format: tensorrt, precision: fp16, engine: {flavour: tensorrt_rtx, when_unavailable: WHEN}}
"""


class Canned:
    """An executor whose steps all succeed, but for those with an answer of their own, by name."""

    def __init__(self, answers: Mapping[str, Callable[[], Outcome]]) -> None:
        self.answers, self.ran = answers, list[str]()

    def run(self, task: Task, progress: Progress) -> Outcome:
        name = task.step.name
        self.ran.append(name)
        if name in self.answers:
            return self.answers[name]()
        if name.startswith("parity"):
            return judged(passed=True)
        (task.out_dir / "model").write_text(name)
        return Outcome(file="model", notes=(f"a note of {name}",), values={"opset": 20})


def judged(*, passed: bool) -> Outcome:
    found = ParityResult(
        max_abs=0.1, max_rel=0.1, cosine=1.0, top1_agreement=None, samples=1, batch_sizes=(1,),
        tolerance=FP32, passed=passed, reason="" if passed else "too far off",
    )  # fmt: skip
    return Outcome(values=asdict(Judgement(parity=found, accuracy=None)))


def fails(error: Exception) -> Callable[[], Outcome]:
    def fail() -> Outcome:
        raise error

    return fail


def made(
    folder: Path, answers: Mapping[str, Callable[[], Outcome]], *, when_unavailable: str = "fail", only: str = ""
) -> tuple[Run, Canned]:
    for name in ("net.py", "x.npy"):
        (folder / name).touch()
    (folder / "m.yaml").write_text(YAML.replace("WHEN", when_unavailable))
    keys = tuple(only.split()) if only else ()
    plan = make_plan(load(folder / "m.yaml"), Options(work_dir=folder / "work", variants=keys))
    run = Run(plan, Terminal(Console(file=io.StringIO())))
    for step in (plan.source, plan.samples):
        run.entries[step.name] = Made(directory=folder, outcome=Outcome(), digest=step.name, cached=True)
    executor, variants = Canned(answers), list(plan.variants)
    steps = Steps(
        store=run.store,
        executor=executor,
        directory=run.directory,
        shown=run.stage,
        warn=run.line,
        owners=making.owners(variants),
        made=run.entries,
    )
    making.make(run, steps, variants, stop=lambda: None)
    return run, executor


def test_a_step_that_variants_share_is_run_once_and_told_by_the_first(tmp_path: Path) -> None:
    run, executor = made(tmp_path, {})
    assert executor.ran.count("export[m_onnx]") == 1
    assert "export[m_two]" not in executor.ran
    notes = {key: [note for note in result.notes if "export" in note] for key, result in run.results.items()}
    told = {"onnx": ["a note of export[m_onnx]"], "ts": ["a note of export[m_ts]"]}
    assert notes == {"onnx": [], "two": [], "fp16": [], "ts": [], "rtx": [], **told}
    assert {result.exit_code for result in run.results.values()} == {0}
    artifact = run.results["rtx"].artifact
    assert artifact is not None
    assert (artifact.kind, artifact.properties, artifact.path.read_text()) == (
        "tensorrt_rtx", {"opset": 20}, "engine[m_rtx]",
    )  # fmt: skip


def test_a_shared_step_that_fails_fails_all_that_need_it_alike_and_no_other(tmp_path: Path) -> None:
    failure = StageError("export: no", found="this", where="net.py:3")
    run, executor = made(tmp_path, {"export[m_onnx]": fails(failure)})
    failed = {key: result.error for key, result in run.results.items() if result.exit_code}
    assert failed.keys() == {"onnx", "two", "fp16", "rtx"}
    (text,) = set(failed.values())
    assert text.startswith("export: no\n  found: this\n  where: net.py:3\n")
    assert text.endswith("/m_onnx.log")  # where its traceback is
    assert executor.ran.count("export[m_onnx]") == 1
    assert "--variant two" in run.results["two"].reproduce
    assert run.results["ts"].parity is not None


def test_a_gate_refuses_its_variant_and_no_sibling_and_an_engine_is_not_built_of_a_refused_graph(
    tmp_path: Path,
) -> None:
    refused = {f"parity[m_{key}]": lambda: judged(passed=False) for key in ("ts", "rtx")}
    run, executor = made(tmp_path, refused)
    assert [key for key, result in run.results.items() if result.exit_code] == ["ts", "rtx"]
    assert "parity[m_ts]: refused by a gate\n  found: too far off" in run.results["ts"].error
    assert run.results["ts"].parity is not None
    assert "engine[m_rtx]" not in executor.ran
    assert run.results["fp16"].parity is not None


def test_what_is_made_of_a_refused_variant_is_refused_though_its_own_gates_pass(tmp_path: Path) -> None:
    refused = {f"parity[m_{key}]": lambda: judged(passed=False) for key in ("onnx", "two")}  # one step, of both
    run, _ = made(tmp_path, refused)
    assert {key: result.exit_code for key, result in run.results.items()} == {
        "onnx": 4, "two": 4, "fp16": 4, "ts": 0, "rtx": 4,
    }  # fmt: skip
    assert "m_fp16: not published, because m_onnx, which it is made from, was refused" in run.results["fp16"].error
    assert run.results["fp16"].parity is not None
    alone, _ = made(tmp_path, refused, only="fp16")
    assert alone.results["fp16"].exit_code == 0  # its parent was not judged


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("lack", ["a library that does not load", "a full disk"])
def test_what_only_the_child_finds_missing_is_skipped_where_the_yaml_allows_it(
    tmp_path: Path, skip: bool, lack: str
) -> None:
    library = absent(flavour("tensorrt_rtx"), "import tensorrt_rtx: libnvinfer.so.10: cannot open")
    lacking = MissingError("no space left on the disk") if lack == "a full disk" else library
    answers = {"engine[m_rtx]": fails(lacking)}
    run, _ = made(tmp_path, answers, when_unavailable="skip" if skip else "fail", only="rtx")
    result = run.results["rtx"]
    if skip and lack != "a full disk":
        assert result.skipped == "import tensorrt_rtx: libnvinfer.so.10: cannot open"
        assert (result.artifact, result.parity, result.accuracy) == (None, None, None)  # those of its graph
        assert result.exit_code == 0
        return
    assert result.exit_code == 3
    assert not result.skipped


def test_a_bug_ends_the_build(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        made(tmp_path, {"export[m_ts]": fails(ZeroDivisionError("a bug"))})
