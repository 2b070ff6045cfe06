"""What the plan of a build says is right of the rows that Triton serves, in a candidate, a repository, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.values import GoldenSamples, RepositoryEntry, RunningServer
from pipeline.build import prove
from pipeline.build.prove import Serving, Subject
from pipeline.build.run import Run
from pipeline.data import samples
from pipeline.plan import DeploymentPlan, Row, Variant
from pipeline.proof.record import ImagesRecord, ModelRecord
from pipeline.repository import pins
from pipeline.repository.manifest import golden_path, read_manifest
from pipeline.repository.versions import CONFIG, version_numbers
from pipeline.servers.triton import emission


def served_rows(run: Run) -> tuple[Row, ...]:
    """What Triton serves: variants, and the ensemble."""
    return tuple(row for row in run.plan.rows if row.server == "triton")


def prove_rows(run: Run) -> None:
    """Prove every row that has something to serve: in the candidate of a build, else as it stands."""
    subjects = []
    for row in served_rows(run):
        entry = run.results[row.key].entry
        if entry is not None and not run.results[row.key].error:
            with run.guarded(row, "smoke"):
                subjects.append(_subject(run, row, entry))
    prove.prove(run, serving(run), subjects)


def serving(run: Run) -> Serving:
    """How the YAML wants servers launched and asked."""
    config = run.plan.loaded.config
    return Serving(name=config.name, release=run.plan.limits.release, serve=config.serve)


def _obstacle(run: Run, variant: Variant) -> str:
    """Why it cannot be served here, or empty; an engine needs a GPU and a server that has its backend."""
    engine = variant.engine
    if engine is None:
        return ""
    if engine.spec.flavour == "tensorrt_rtx" and run.plan.loaded.config.serve.engine == "container":
        return "no container has a backend for TensorRT-RTX"
    return engine.obstacle


def _subject(run: Run, row: Row, entry: RepositoryEntry) -> Subject:
    """What is right of a row whose files are here."""
    own = pins.read_config(entry.root / entry.model_name)
    reached = pins.member_versions(entry.root, own) if own is not None else {}
    named = {step.model_name: step.model_version for step in own.ensemble_scheduling.step} if own is not None else {}
    return _made(run, row, entry, reached, _config(run, row, entry.root, named))


def _config(run: Run, row: Row, root: Path, named: Mapping[str, int]) -> Any:
    """The YAML's configuration, with what standing ensembles ask of the model."""
    if isinstance(row, DeploymentPlan):
        return emission.models(run.given(row), named)[row.model].config
    candidate = run.candidates.get(row.root)
    asked = pins.standing(root).get(row.identifier, set())
    if candidate is not None:  # ensembles of other builds stand in the repository alone
        asked = asked | pins.standing(candidate.root, without=candidate.models).get(row.identifier, set())
    return _serving_too(run, row, version_numbers(root / row.identifier), asked)


def _serving_too(run: Run, row: Row, numbers: Sequence[int], asked: set[int]) -> Any:
    """A variant's configuration, which serves what is asked too."""
    text = pins.widened(emission.described(run.given(row)).files[CONFIG], numbers, asked)
    return model_config.parse_text(text.decode(), CONFIG)


def _made(run: Run, row: Row, entry: RepositoryEntry, reached: Mapping[str, int], config: Any) -> Subject:
    variant = row.variant
    if isinstance(row, DeploymentPlan):
        answering = run.results[variant.key].entry
        newest = answering.version if answering is not None else reached.get(variant.identifier)
        members = {name: reached.get(name, 0) for name in row.members}
        known: ModelRecord | ImagesRecord = emission.known(run.given(row))
    else:
        newest, members = entry.version, {}
        known = ModelRecord(signature=run.signature, max_batch_size=variant.max_batch_size, tolerance=variant.tolerance)
    return Subject(
        row=row,
        entry=entry,
        known=known,
        golden=partial(_golden, run, entry.root, newest, run.golden if members else None),
        members=members,
        config=config,
        flavour=variant.engine.spec.flavour if variant.engine else "tensorrt",
        obstacle=_obstacle(run, variant),
    )


def _golden(
    run: Run, root: Path, newest: int | None, unknown: GoldenSamples | None, model: str, number: int
) -> GoldenSamples | None:
    """What a version must answer: the newest the current samples, an older one those that it was judged by.

    A version that this tool did not write has no known answers: where that leaves nothing, it only has to answer.
    """
    if number in (newest, 0):
        return run.golden
    manifest = read_manifest(root, model, number)
    return samples.read(golden_path(root, manifest)) if manifest else unknown


def prove_at(run: Run, server: RunningServer) -> None:
    """Smoke-test every variant, and the ensemble, on a server that is running already."""
    from pipeline.servers.triton.client import readiness

    for row in run.plan.rows:
        if row.server != "triton":
            run.update(row, skipped=f"{server.http_url} is a Triton server, which does not serve it")
    for row in served_rows(run):
        with run.guarded(row, "smoke"):
            if row.variant.engine and prove.skips_at(run, row, server):
                continue
            served, named, reached = readiness.versions(server.http_url, row.identifier)
            entry = RepositoryEntry(root=row.root, model_name=row.identifier, version=max(served), created=False)
            run.update(row, entry=entry)
            if isinstance(row, DeploymentPlan):
                config = emission.models(run.given(row), named)[row.model].config
            else:
                config = _serving_too(run, row, served, set(served))
            prove.prove_at(run, serving(run), _made(run, row, entry, reached, config), server, served)
