"""What is emitted of variants, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.base.values import Artifact
from pipeline.build import emission
from tests.unit.build.test_publication import run_of


def test_what_triton_does_not_serve_is_said_and_not_emitted(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    artifact = Artifact(path=tmp_path / "m", kind="saved_model", sha256="", size_bytes=0, tool_versions={})
    run.plan = replace(
        run.plan, variants=tuple(replace(one, server="tfserving") for one in run.plan.variants), deployments=()
    )
    run.update(run.plan.variants[0], artifact=artifact)
    emission.emit(run)
    made, never = (run.results[variant.key] for variant in run.plan.variants)
    assert made.notes == ("not in Triton's repository: 24.10 has no TensorFlow backend",)
    assert never.notes == ()
    assert (made.entry, made.error) == (None, "")
