"""A variant for TorchServe: its archive and settings, emitted as a version of their own, and the real server's proof.

``<root>.torchserve/<name>/<N>/`` holds ``model_store/<name>.mar`` and ``config.properties``.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.base import files
from pipeline.base.errors import MissingError, SmokeError, StageError
from pipeline.base.step import tool_versions
from pipeline.base.values import Artifact, RepositoryEntry, SmokeResult
from pipeline.build.run import Run
from pipeline.machine.environment import TORCHSERVE
from pipeline.plan import TorchServePlan
from pipeline.report.units import human_bytes
from pipeline.repository.manifest import manifest_check
from pipeline.repository.versions import Version
from pipeline.servers.torchserve import store as torchserve_store


def emit(run: Run, deployment: TorchServePlan) -> None:
    """Make the archive and put it into the candidate; a failure is kept to this row."""
    with run.guarded(deployment, "build"):
        made = run.results[deployment.variant.key]
        if made.artifact is None or made.entry is None:
            raise StageError(
                f"torchserve[{deployment.identifier}]: {deployment.variant.identifier} was not made",
                hint="see why that variant failed",
            )
        _require(deployment, deployment.lacking_to_make)
        # the archive holds the variant's own file, so what that was judged to be, this is
        run.update(deployment, parity=made.parity, accuracy=made.accuracy)
        place = run.plan.work_dir / "tmp"
        with files.disk_errors(place, f"torchserve[{deployment.identifier}]"):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place) as folder:
                _emit(run, deployment, made.artifact, Path(folder).absolute())


def _emit(run: Run, deployment: TorchServePlan, module: Artifact, folder: Path) -> None:
    store, settings = folder / "model_store", folder / "config.properties"
    with run.stage(f"candidate[{deployment.identifier}]", deployment.identifier) as stage:
        store.mkdir()
        scores = run.postprocessing
        config = torchserve_store.model_config(
            run.signature,
            batch_size=deployment.batch_size,
            max_batch_delay_ms=deployment.max_batch_delay_ms,
            workers=deployment.workers,
            response_timeout_s=deployment.response_timeout_s,
            startup_timeout_s=round(run.plan.loaded.config.serve.start_timeout_s),
            scores=scores,
        )
        labels = (
            scores[1].labels if scores else next((spec.labels for spec in run.signature.outputs if spec.labels), ())
        )
        path = torchserve_store.archive(store, name=deployment.model, module=module.path, config=config, labels=labels)
        settings.write_text(torchserve_store.properties(deployment.model), encoding="utf-8")
        artifact = Artifact(
            path=path,
            kind="mar",
            sha256=files.sha256_file(path),
            size_bytes=path.stat().st_size,
            tool_versions=tool_versions(TORCHSERVE),
        )
        version = Version(
            model_name=deployment.model,
            file_name="model_store",
            artifact=store,
            beside={"config.properties": settings},
            model_files={},
            golden=run.golden_path,
            manifest=_manifest(run, deployment, artifact, module),
        )
        entry = run.emit(deployment, version, stage)
        stage.result = f"version {entry.version}, {human_bytes(artifact.size_bytes)}"
    run.update(deployment, entry=entry, artifact=artifact, cached=not entry.created)


def _manifest(run: Run, deployment: TorchServePlan, artifact: Artifact, module: Artifact) -> Mapping[str, Any]:
    """What is known of the version; nothing in it depends on when or where it was built."""
    record = {
        "schema": 1,
        "tool": f"model-repository-pipeline {__version__}",
        "model": deployment.model,
        "variant": deployment.variant.key,
        "format": deployment.format,
        "precision": deployment.precision,
        "sha256": artifact.sha256,
        "properties": {"module_sha256": module.sha256},
        "tool_versions": dict(artifact.tool_versions),
        "source": {"sha256": run.entries[run.plan.source.name].digest},
    }
    masked: dict[str, Any] = json.loads(run.plan.loaded.masked(json.dumps(record)))
    return masked


def prove(run: Run, deployment: TorchServePlan) -> None:
    """Launch the real TorchServe on the newest version, ask it everything, stop it; a failure is kept to this row."""
    entry = run.results[deployment.key].entry
    if entry is None:
        return
    with run.guarded(deployment, "smoke"):
        _require(deployment, deployment.lacking_to_serve)
        run.judge(deployment, _served(run, deployment, entry), log=_log(run, deployment))
        run.prove(entry, "served")


def _served(run: Run, deployment: TorchServePlan, entry: RepositoryEntry) -> SmokeResult:
    from pipeline.servers.torchserve import checks
    from pipeline.servers.torchserve import server as serving

    serve = run.plan.loaded.config.serve
    with contextlib.ExitStack() as stack:
        with run.stage(f"server[{deployment.identifier}]", deployment.identifier) as stage:
            served = stack.enter_context(
                serving.launched(
                    entry.version_dir,
                    [deployment.model],
                    log_path=_log(run, deployment),
                    start_timeout_s=serve.start_timeout_s,
                )
            )
            stage.result = f"READY at {served.server.http_url}"
        expectation = checks.TorchServeExpectation(
            model=deployment.model,
            signature=run.signature,
            golden=run.golden,
            batch_size=deployment.batch_size,
            max_batch_delay_ms=deployment.max_batch_delay_ms,
            workers=deployment.workers,
            tolerance=deployment.variant.tolerance,
            scores=run.postprocessing,
            alive=served.check_alive,
        )
        asking: dict[str, Any] = {"request_timeout_s": serve.request_timeout_s}
        with run.stage(f"smoke[{deployment.identifier}]", deployment.identifier) as stage:
            result = checks.run(served.server, served.management_url, expectation, progress=stage.progress, **asking)
            stage.result = f"{len(result.checks) + 1} checks"
        if result.passed:
            with run.stage(f"measure[{deployment.identifier}]", deployment.identifier) as stage:
                found = checks.measured(served.server, expectation, progress=stage.progress, **asking)
                if isinstance(found, SmokeError):
                    run.update(deployment, unmeasured=" ".join(f"{found.what}: {found.found}".split()))
                else:
                    run.update(deployment, measurement=found)
    return replace(result, checks=(manifest_check(entry), *result.checks))


def _log(run: Run, deployment: TorchServePlan) -> Path:
    return run.directory / f"{deployment.identifier}.server.log"


def _require(deployment: TorchServePlan, lacking: tuple[str, ...]) -> None:
    if lacking:
        raise MissingError(
            f"torchserve[{deployment.identifier}]: this machine lacks what it needs",
            found="\n".join(lacking),
            hint="python -m pipeline doctor",
        )
