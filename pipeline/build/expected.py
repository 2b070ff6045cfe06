"""What the plan of a build says is right of the rows that Triton serves, in a candidate, a repository, or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import model_config
from pipeline.base.values import GoldenSamples, RepositoryEntry, RunningServer
from pipeline.build import ensemble, prove
from pipeline.build.prove import Alive, Serving, Subject
from pipeline.build.run import Run
from pipeline.data import samples
from pipeline.plan import EnsemblePlan, Variant
from pipeline.repository import pins
from pipeline.repository.manifest import golden_path, read_manifest
from pipeline.repository.versions import CONFIG, version_numbers
from pipeline.servers.triton.proof.expectation import Expectation, ImagesExpectation

Served = Variant | EnsemblePlan
"""The rows of a report that Triton serves."""


def served_rows(run: Run) -> tuple[Served, ...]:
    """What Triton serves: variants, and the ensemble."""
    variants = tuple(variant for variant in run.plan.variants if variant.server == "triton")
    return (*variants, *([run.plan.ensemble] if run.plan.ensemble else []))


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
    return Serving(
        name=config.name,
        container=config.serve.engine == "container",
        release=run.plan.limits.release,
        start_timeout_s=config.serve.start_timeout_s,
        request_timeout_s=config.serve.request_timeout_s,
    )


def _answering(row: Served) -> Variant:
    return row.variant if isinstance(row, EnsemblePlan) else row


def _obstacle(run: Run, row: Served) -> str:
    """Why it cannot be served here, or empty; an engine needs a GPU and a server that has its backend."""
    engine = _answering(row).engine
    if engine is None:
        return ""
    if engine.spec.flavour == "tensorrt_rtx" and run.plan.loaded.config.serve.engine == "container":
        return "no container has a backend for TensorRT-RTX"
    return engine.obstacle


def _subject(run: Run, row: Served, entry: RepositoryEntry) -> Subject:
    """What is right of a row whose files are here."""
    own = pins.read_config(entry.root / entry.model_name)
    reached = pins.member_versions(entry.root, own) if own is not None else {}
    named = {step.model_name: step.model_version for step in own.ensemble_scheduling.step} if own is not None else {}
    return _made(run, row, entry, reached, _config(run, row, entry.root, named))


def _config(run: Run, row: Served, root: Path, named: Mapping[str, int]) -> Any:
    """The YAML's configuration, with what standing ensembles ask of the model."""
    if isinstance(row, EnsemblePlan):
        return ensemble.model_files(run, row, row.name, named).config
    files = run.model_files(row).files
    candidate = run.candidates.get(row.root)
    asked = pins.standing(root).get(row.identifier, set())
    if candidate is not None:  # ensembles of other builds stand in the repository alone
        asked = asked | pins.standing(candidate.root, without=candidate.models).get(row.identifier, set())
    text = pins.widened(files[CONFIG], version_numbers(root / row.identifier), asked)
    return model_config.parse_text(text.decode(), CONFIG)


def _config_at(run: Run, row: Served, served: Sequence[int], named: Mapping[str, int]) -> Any:
    """The YAML's configuration, which serves what a running server does."""
    if isinstance(row, EnsemblePlan):
        return ensemble.model_files(run, row, row.name, named).config
    text = pins.widened(run.model_files(row).files[CONFIG], served, served)
    return model_config.parse_text(text.decode(), CONFIG)


def _made(run: Run, row: Served, entry: RepositoryEntry, reached: Mapping[str, int], config: Any) -> Subject:
    variant = _answering(row)

    def expected(served: Sequence[int], alive: Alive) -> Expectation | ImagesExpectation:
        if isinstance(row, Variant):
            return Expectation(
                model=row.identifier,
                signature=run.signature,
                max_batch_size=row.max_batch_size,
                versions={number: _golden(run, row, entry.root, number, entry.version) for number in served},
                tolerance=row.tolerance,
                config=config,
                alive=alive,
            )
        known, answering = ensemble.known(run, row), run.results[variant.key].entry
        number = reached.get(variant.identifier)
        newest = answering.version if answering is not None else number
        golden = run.golden if number is None else _golden(run, variant, entry.root, number, newest)
        return ImagesExpectation(
            model=row.name,
            members=row.models,
            versions=served,
            config=config,
            golden=golden or run.golden,
            scores=known.scores,
            before=known.before,
            after=known.after,
            tolerance=known.tolerance,
            alive=alive,
        )

    ensembled = isinstance(row, EnsemblePlan)
    return Subject(
        row=row,
        entry=entry,
        members={name: reached.get(name, 0) for name in row.models} if isinstance(row, EnsemblePlan) else {},
        parts=row.published[:-1] if ensembled else (),
        config=config,
        expected=expected,
        flavour=variant.engine.spec.flavour if variant.engine else "tensorrt",
        obstacle=_obstacle(run, row),
    )


def _golden(run: Run, variant: Variant, root: Path, number: int, newest: int | None) -> GoldenSamples | None:
    """What a version must answer: the newest the current samples, an older one those that it was judged by.

    A version that this tool did not write has no known answers: None, it only has to answer.
    """
    if number == newest:
        return run.golden
    manifest = read_manifest(root, variant.identifier, number)
    return samples.read(golden_path(root, manifest)) if manifest else None


def prove_at(run: Run, server: RunningServer) -> None:
    """Smoke-test every variant, and the ensemble, on a server that is running already."""
    from pipeline.servers.triton.client import readiness

    for row in run.plan.rows:
        if row.server != "triton":
            run.update(row, skipped=f"{server.http_url} is a Triton server, which does not serve it")
    for row in served_rows(run):
        with run.guarded(row, "smoke"):
            if _answering(row).engine and (reason := readiness.not_loaded(server.http_url, row.identifier)):
                found = f"{server.http_url} does not serve it: {reason}"
                run.update(row, skipped=f"{found}; an engine needs a server with a GPU")
                continue
            served = readiness.ready_versions(server.http_url, row.identifier)
            entry = RepositoryEntry(root=row.root, model_name=row.identifier, version=max(served), created=False)
            run.update(row, entry=entry)
            named = readiness.asked_versions(server.http_url, row.name) if isinstance(row, EnsemblePlan) else {}
            reached = {
                name: number if number > 0 else max(readiness.ready_versions(server.http_url, name))
                for name, number in named.items()
            }
            subject = _made(run, row, entry, reached, _config_at(run, row, served, named))
            prove.smoke(run, serving(run), subject, server, lambda: None, served)
            run.update(row, proof="served")
            run.update(row, unmeasured="a server that others may be using is not put under load")
