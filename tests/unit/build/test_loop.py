"""What a build does not make."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from pipeline.build import elsewhere, emission, publication
from pipeline.build import loop as building
from pipeline.build.loop import Options, Stages
from pipeline.config.load import load
from pipeline.report.terminal import Terminal

YAML = """
name: m
source: {model: {callable: "net.py:Net"}}
inputs: {x: {shape: [N, 4]}}
outputs: {y: {shape: [N, 2]}}
samples: {from: {arrays: x.npy}}
variants: {ts: {format: torchscript}}
torchserve: {}
"""


def test_an_archive_is_not_made_of_a_variant_that_failed(tmp_path: Path) -> None:
    (tmp_path / "net.py").touch()
    (tmp_path / "x.npy").touch()
    (tmp_path / "m.yaml").write_text(YAML)
    options = Options(repository=tmp_path / "repo", work_dir=tmp_path / "work")
    stages = Stages(building.make_plan(load(tmp_path / "m.yaml"), options), Terminal(Console(quiet=True)))
    (archive,) = stages.run.plan.deployments
    with publication.opened(stages.run):
        emission.emit(stages.run)
        elsewhere.prove(stages.run)  # nothing was emitted: nothing to add
        publication.publish(stages.run)
    result = stages.run.results["m.torchserve"]
    assert result.exit_code == 4
    assert result.error.startswith("torchserve[m.torchserve]: m_ts was not made")
    assert not (tmp_path / "repo.torchserve").exists()
    assert not list((tmp_path / "repo.torchserve.state" / "candidates").iterdir())
    stages.run.adopt(archive)
    assert "nothing to serve" in stages.run.results["m.torchserve"].error
