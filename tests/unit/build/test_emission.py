"""What is emitted of variants, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.base import files
from pipeline.base.values import Artifact, RepositoryEntry
from pipeline.build import emission
from pipeline.repository.versions import Version
from pipeline.servers.work import Emission
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


def test_an_engine_that_stands_already_is_told_of_by_its_own_bytes(tmp_path: Path) -> None:
    made = Artifact(path=tmp_path / "model.plan", kind="tensorrt", sha256="ours", size_bytes=9, tool_versions={})
    version = Version(
        model_name="m_trt", file_name="model.plan", artifact=made.path, model_files={}, golden=tmp_path, manifest={},
        identity="equal",
    )  # fmt: skip
    entry = RepositoryEntry(root=tmp_path, model_name="m_trt", version=1, created=False)
    entry.version_dir.mkdir(parents=True)
    (entry.version_dir / "model.plan").write_bytes(b"theirs")
    (entry.version_dir / "model.plan.json").write_text("{}")
    engine = Emission(version=version, artifact=made, loose=("model.plan",))
    told = emission._as_standing(engine, entry)
    assert told == replace(made, sha256=files.sha256_bytes(b"theirs"), size_bytes=6)
    assert emission._as_standing(engine, replace(entry, created=True)) is made
    assert emission._as_standing(replace(engine, loose=()), entry) is made
