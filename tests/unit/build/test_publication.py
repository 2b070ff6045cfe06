"""What a build publishes, by what became of its rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.base import files
from pipeline.base.errors import SmokeError
from pipeline.build import loop, publication
from pipeline.build.loop import Options
from pipeline.build.run import Run
from pipeline.config.load import load
from pipeline.plan import Row
from pipeline.report.terminal import Terminal
from pipeline.repository import candidate as candidates
from pipeline.repository.manifest import read_manifest
from pipeline.repository.versions import Version, state_dir
from tests.unit.repository.bench import Bench

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {image: {shape: [N, 1, 8, 8]}}
preprocess: {}
outputs: {y: {shape: [N, 2], labels: [a, b]}}
postprocess: {}
samples: {from: {dataset: digits}}
variants: {onnx: {format: onnx}, other: {from: onnx}}
"""


def run_of(folder: Path) -> Run:
    (folder / "net.py").touch()
    (folder / "m.yaml").write_text(YAML)
    options = Options(repository=folder / "repo", work_dir=folder / "work")
    return Run(loop.make_plan(load(folder / "m.yaml"), options), Terminal(Console(quiet=True)))


def versions_of(bench: Bench, row: Row, content: str) -> list[Version]:
    plain = [bench.version(content, name=name) for name in row.published]
    if row.format != "ensemble":
        return plain
    return [*plain[:-1], replace(bench.ensemble({"m_onnx": 1}), model_name=row.published[-1])]


def built(bench: Bench, content: str, *failing: str, levels: str = "served") -> Run:
    """A build of this content, some of whose rows fail their smoke tests."""
    run = run_of(bench.folder)
    with publication.opened(run):
        for row in run.plan.rows:
            for version in versions_of(bench, row, content):
                candidate = run.candidates[row.root]
                entry = candidate.add(version, retain=None)
                level: Any = levels
                run.levels[entry.root, entry.model_name, entry.version] = level
            run.update(row, entry=entry)
            if row.identifier in failing:
                run.fail(row, SmokeError("wrong"), "smoke")
        publication.publish(run)
    return run


def state(bench: Bench) -> dict[str, str]:
    found = files.tree_digests(state_dir(bench.root)) if state_dir(bench.root).is_dir() else {}
    return {name: digest for name, digest in found.items() if "lock" not in name}


def test_all_that_passed_is_published_with_its_level(bench: Bench) -> None:
    run = built(bench, "one")
    assert sorted(item.name for item in bench.root.iterdir()) == [
        "m", "m_onnx", "m_other", "m_postprocess", "m_preprocess",
    ]  # fmt: skip
    for row in run.results.values():
        assert row.entry is not None
        assert (row.entry.root, row.proof) == (bench.root, "served")
    for name in ("m", "m_onnx", "m_preprocess"):
        manifest = read_manifest(bench.root, name, 1)
        assert manifest is not None
        assert manifest["proof"] == "served"
    assert not list((bench.folder / "work" / publication.LEFTOVERS).iterdir())


@pytest.mark.parametrize(
    ("failing", "published"),
    [
        ("m_other", {"m", "m_onnx", "m_preprocess", "m_postprocess"}),
        ("m", {"m_onnx", "m_other"}),
        ("m_onnx", {"m_other"}),
    ],
)
def test_what_fails_takes_its_ensemble_with_it_and_nothing_else(
    bench: Bench, failing: str, published: set[str]
) -> None:
    run = built(bench, "one", failing)
    assert {item.name for item in bench.root.iterdir()} == published
    if failing == "m_onnx":
        assert "not published, because m_onnx, which answers in it, was not" in run.results["m"].error
    for row in run.results.values():
        assert (row.entry is None) == bool(row.error)
        assert (row.proof is None) == bool(row.error)


def test_a_row_that_fails_leaves_not_a_byte(bench: Bench) -> None:
    built(bench, "one")
    before, records = bench.tree, state(bench)
    built(bench, "two", "m", "m_onnx", "m_other")
    assert (bench.tree, state(bench)) == (before, records)


def test_a_build_that_proves_nothing_says_so_and_lowers_nothing(bench: Bench) -> None:
    assert built(bench, "one", levels="none").results["onnx"].proof == "none"
    assert built(bench, "one", levels="served").results["onnx"].proof == "served"
    assert built(bench, "one", levels="none").results["onnx"].proof == "served"
    assert built(bench, "two", levels="none").results["onnx"].proof == "none"


def test_what_a_killed_build_left_is_collected(bench: Bench) -> None:
    run = run_of(bench.folder)
    note = bench.folder / "work" / publication.LEFTOVERS / run.run_id
    files.write_atomic(note, f"{bench.root}\n{bench.root}.gone\n")
    left = state_dir(bench.root) / "candidates" / run.run_id
    left.mkdir(parents=True)
    (left / "big").write_bytes(bytes(1000))
    assert publication.collect(bench.folder / "work") == (1, 1000)
    assert not left.exists()
    assert not note.exists()


def test_what_a_living_build_uses_is_not_collected(bench: Bench) -> None:
    run = run_of(bench.folder)
    with publication.opened(run):
        assert publication.collect(bench.folder / "work") == (0, 0)
        assert all(candidates.is_alive(root, run.run_id) for root in run.candidates)
