"""From judged files to versions in the candidates of their roots, with all that is known of them."""

from __future__ import annotations

import pkgutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Made, Step, tool_versions
from pipeline.base.values import Artifact, RepositoryEntry
from pipeline.build.run import Run
from pipeline.plan import DeploymentPlan, Row, Variant
from pipeline.proof import record
from pipeline.report.terminal import Stage
from pipeline.report.units import human_bytes
from pipeline.servers.table import DEPLOYMENTS, SERVERS
from pipeline.servers.work import Complete, Emission, Making, Versions

Prepared = Sequence[tuple[Step, Made | MissingError]]


def emit(run: Run) -> None:
    """Emit every variant that was made, and then what is made of variants; a failure is kept to its row."""
    for variant in run.plan.variants:
        artifact = run.results[variant.key].artifact
        if artifact is not None and not run.results[variant.key].error:
            with run.guarded(variant, "build"):
                if function := SERVERS[variant.server].variants:
                    _emit(run, variant, artifact, function, ())
                else:  # its deployment emits it
                    run.note(variant, DEPLOYMENTS[variant.server].alone.format(release=run.plan.limits.release))
    for row in run.plan.deployments:
        with run.guarded(row, "build"):
            _deploy(run, row)


def _deploy(run: Run, row: DeploymentPlan) -> None:
    variant, made = row.variant, run.results[row.variant.key]
    if made.skipped:
        run.update(row, skipped=f"{variant.identifier}, which answers in it, was not made: {made.skipped}")
        return
    if made.artifact is None or made.error:
        unmade = DEPLOYMENTS[row.server].unmade
        raise StageError(
            unmade.format(identifier=row.identifier, model=row.model, variant=variant.identifier),
            found=variant.identifier,
            where=run.plan.loaded.where("variants", variant.key),
            hint="see the error of that variant; mend it, or name another under `from`",
        )
    require(row, row.lacking_to_make)
    prepared = [(step, _prepared(run, row, step)) for step in row.steps]
    _emit(run, row, made.artifact, SERVERS[row.server].deployed, prepared)


def require(row: DeploymentPlan, lacking: tuple[str, ...]) -> None:
    """Refuse a deployment that this machine cannot make, or prove.

    Raises:
        MissingError: something is lacking.
    """
    if lacking:
        what = f"{row.server}[{row.identifier}]: this machine lacks what it needs"
        raise MissingError(what, found="\n".join(lacking), hint="python -m pipeline doctor")


def _prepared(run: Run, row: DeploymentPlan, step: Step) -> Made | MissingError:
    with run.stage(step.name, row.identifier) as stage:
        try:
            made = run.step(step, stage)
        except MissingError as error:
            stage.result = "not to be had here"
            return error
        stage.result = " · ".join(made.notes)
        return made


def _emit(run: Run, row: Row, artifact: Artifact, function: str, prepared: Prepared) -> None:
    label, place, made = f"candidate[{row.identifier}]", run.plan.work_dir / "tmp", run.results[row.variant.key]
    with files.disk_errors(place, label):
        place.mkdir(parents=True, exist_ok=True)
        with run.stage(label, row.identifier) as stage, tempfile.TemporaryDirectory(dir=place) as folder:
            making = Making(
                artifact=artifact,
                manifest=_manifest(run, row.variant, artifact),
                prepared=prepared,
                folder=Path(folder),
                root=run.candidates[row.root].path,
            )
            own, entries = _versions(run, row, making, function, stage)
    if own is not None and row.variant is not row:  # it is that file, so what that was judged to be, this is
        run.update(row, parity=made.parity, accuracy=made.accuracy)
    run.update(row, artifact=own, entry=entries[-1], cached=made.cached and stage.cached)


def _versions(
    run: Run, row: Row, making: Making, function: str, stage: Stage
) -> tuple[Artifact | None, list[RepositoryEntry]]:
    """Put all versions of a row into its candidate; gives what the report tells of its file."""
    versions: Versions = pkgutil.resolve_name(function)
    own, entries = None, []
    for emission in versions(run.given(row), making):
        run.note(row, *emission.notes)
        entries.append(run.emit(row, emission.version, stage))
        own = _as_standing(emission, entries[-1])
    if SERVERS[row.server].complete:
        complete: Complete = pkgutil.resolve_name(SERVERS[row.server].complete)
        complete(making.root)
    stage.cached = not any(entry.created for entry in entries)
    if len(entries) > 1:
        stage.result = " · ".join(f"{entry.model_name} version {entry.version}" for entry in entries)
    elif own is not None and own.kind != making.artifact.kind:
        stage.result = f"{stage.result}, {human_bytes(own.size_bytes)}"
    return own, entries


def _as_standing(emission: Emission, entry: RepositoryEntry) -> Artifact | None:
    """What is told of a version's file: where an equal one of another build stands, of that one's bytes."""
    artifact, standing = emission.artifact, [entry.version_dir / name for name in emission.loose]
    if artifact is None or entry.created or not standing:
        return artifact
    sizes = sum(files.size_bytes(path) for path in standing)
    return replace(artifact, sha256=files.sha256_tree(standing[0]), size_bytes=sizes)


def published(run: Run) -> None:
    """Complete the roots of rows that were published, and say how they are launched; a failure is kept to its row."""
    for row in run.plan.deployments:
        result, function = run.results[row.key], SERVERS[row.server].complete
        if function and result.entry is not None and not result.error:
            with run.guarded(row, "build"):
                complete: Complete = pkgutil.resolve_name(function)
                run.note(row, f"launch: {complete(row.root)}")


def _manifest(run: Run, variant: Variant, artifact: Artifact) -> Mapping[str, Any]:
    """What is known of a variant's file; nothing in it depends on when or where it was built."""
    result, plan = run.results[variant.key], run.plan
    made_by, config = plan.source, plan.loaded.config
    known = record.ModelRecord(
        signature=run.signature, max_batch_size=variant.max_batch_size, tolerance=variant.tolerance
    )
    return {
        "schema": 1,
        "tool": f"model-repository-pipeline {__version__}",
        "model": config.name,
        "variant": variant.key,
        "format": variant.format,
        "precision": variant.precision,
        "target": {"release": plan.limits.release, "onnxruntime": plan.limits.onnxruntime},
        "sha256": artifact.sha256,
        "properties": dict(artifact.properties),
        "tool_versions": dict(artifact.tool_versions),
        "source": {
            "settings": config.source.model_dump(mode="json", by_alias=True, exclude_none=True),
            "files": dict(made_by.inputs),
            "sha256": run.entries[made_by.name].digest,
            "tool_versions": tool_versions(made_by.tools),
        },
        "parity": asdict(result.parity) if result.parity else None,
        "accuracy": asdict(result.accuracy) if result.accuracy else None,
        "serving": record.of_model(known),
        "notes": list(artifact.notes),
    }
