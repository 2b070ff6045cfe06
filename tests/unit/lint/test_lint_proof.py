"""Versions that were never proven."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.base.values import ProofLevel
from pipeline.lint import lint
from tests.unit.repository.bench import Bench

CONFIG = 'backend: "python" max_batch_size: 4 input { name: "x" data_type: TYPE_FP32 dims: 1 } \
output { name: "y" data_type: TYPE_FP32 dims: 1 }'


def warned(bench: Bench) -> list[str]:
    return [finding.path for finding in lint(bench.root) if finding.rule == "version-not-proven"]


@pytest.mark.parametrize(("level", "paths"), [("none", ["m_onnx/1"]), ("inspected", []), ("served", [])])
def test_only_what_was_never_proven_is_warned_of(tmp_path: Path, level: ProofLevel, paths: list[str]) -> None:
    bench = Bench(tmp_path)
    bench.publish(bench.version("one", CONFIG), proof=level)
    assert warned(bench) == paths


def test_versions_that_are_not_served_and_models_of_others_are_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.publish(bench.version("one", CONFIG))
    bench.publish(bench.version("two", CONFIG), proof="served")
    (bench.root / "theirs" / "1").mkdir(parents=True)
    (bench.root / "theirs" / "config.pbtxt").write_text(CONFIG)
    assert warned(bench) == []
