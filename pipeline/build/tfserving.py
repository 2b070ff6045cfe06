"""A SavedModel for TensorFlow Serving: ``<root>/<name>/<N>/``, ``models.config``, and the proof of both."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.values import RepositoryEntry
from pipeline.build.emission import manifest_of
from pipeline.build.run import Run
from pipeline.formats.saved_model import tfserving_messages
from pipeline.plan import TfServingPlan
from pipeline.proof.ledger import Ledger
from pipeline.repository.manifest import manifest_check
from pipeline.repository.versions import LOCK_TIMEOUT_S, Version, global_lock, version_numbers
from pipeline.servers.tfserving import server
from pipeline.servers.tfserving.checks import Suite, TfServingExpectation

SCRIPT = "serve.sh"
_LOOKS_EVERY_S = 60  # at models.config: a model that a later build adds is then served without a restart


def emit(run: Run, plan: TfServingPlan) -> None:
    """Put the variant's SavedModel into the candidate of the tree; a failure is kept to this row."""
    with run.guarded(plan, "build"):
        made = run.results[plan.variant.key]
        if made.artifact is None or made.error:
            raise StageError(
                f"tfserving[{plan.model}]: its SavedModel was not made",
                found=f"{plan.variant.identifier} failed",
                hint="see the error of that variant",
            )
        with run.stage(f"candidate[{plan.identifier}]", plan.identifier) as stage:
            version = Version(
                model_name=plan.model,
                file_name="",
                artifact=made.artifact.path,
                model_files={},
                golden=run.golden_path,
                manifest=manifest_of(run, plan.variant, made.artifact),
            )
            entry = run.emit(plan, version, stage)
            write_tree_files(entry.root)
        run.update(
            plan,
            artifact=made.artifact,
            entry=entry,
            parity=made.parity,
            accuracy=made.accuracy,
            cached=made.cached and not entry.created,
        )


def published(run: Run, plan: TfServingPlan) -> None:
    """Name the model in the tree's own files, now that it is there; a failure is kept to this row."""
    entry = run.results[plan.key].entry
    if entry is None or run.results[plan.key].error:
        return
    with run.guarded(plan, "build"):
        write_tree_files(plan.root)
        run.note(plan, f"launch: {launch_command(plan.root)}")


def write_tree_files(root: Path) -> None:
    """Write ``models.config`` for every model in the tree, and the script that launches TF-Serving on it.

    Raises:
        MissingError: the disk is full, or another build holds the tree for too long.
    """
    with files.locked(global_lock(root), LOCK_TIMEOUT_S):
        names = sorted(item.name for item in root.iterdir() if version_numbers(item))
        files.write_atomic(root / server.MODELS_CONFIG, tfserving_messages.models_config(names, server.INSIDE))
        files.write_atomic(root / SCRIPT, _script())


def launch_command(root: Path) -> str:
    """What to type to serve the tree with Docker."""
    return f"sh {shlex.quote(str(root / SCRIPT))}"


def _script() -> str:
    command = server.docker_run('"$here"', name="", ports=server.USUAL_PORTS)
    words = [*command, f"--model_config_file_poll_wait_seconds={_LOOKS_EVERY_S}", '"$@"']
    return (
        "#!/bin/sh\n"
        f"# Serves every model of this folder with TensorFlow Serving: gRPC on {server.USUAL_PORTS.grpc}, "
        f"REST on {server.USUAL_PORTS.http}, on this machine alone.\n"
        'here=$(cd "$(dirname "$0")" && pwd) || exit 1\n'
        f"exec {' '.join(words)}\n"
    )


# ---- the proof ----------------------------------------------------------------------------------------------------


def prove(run: Run, plan: TfServingPlan) -> None:
    """Hold the newest version against the golden samples, its manifest and TF-Serving's own messages.

    With ``serve.engine: container`` TensorFlow Serving itself is launched and asked over REST and gRPC; else
    TensorFlow's loader runs what the server would run, and the report says that the server was not run.
    """
    entry = run.results[plan.key].entry
    if entry is None:
        return
    with run.guarded(plan, "smoke"), run.stage(f"smoke[{plan.identifier}]", plan.identifier) as stage:
        ledger, suite = Ledger(), _suite(run, plan, entry)
        result = ledger.run(plan.identifier, suite.offline(), stage.progress)
        serve = run.plan.loaded.config.serve
        served = serve.engine == "container"
        if served:
            log_path = run.directory / f"{plan.identifier}.server.log"
            with server.launch(
                entry.root, plan.model, log_path=log_path, start_timeout_s=serve.start_timeout_s
            ) as running:
                result = ledger.run(plan.identifier, suite.served(running), stage.progress)
        else:
            run.note(plan, "the server was not run: TensorFlow's own loader answered in its place")
        result = replace(result, checks=(manifest_check(entry), *result.checks))
        stage.result = f"{len(result.checks)} checks"
        run.judge(plan, result)
        run.prove(entry, "served" if served else "inspected")


def _suite(run: Run, plan: TfServingPlan, entry: RepositoryEntry) -> Suite:
    return Suite(
        TfServingExpectation(
            root=entry.root,
            model=plan.model,
            version=entry.version,
            signature=run.signature,
            golden=run.golden,
            max_batch_size=plan.variant.max_batch_size,
            tolerance=plan.variant.tolerance,
            metadata_path=run.directory / f"{plan.identifier}.metadata.json",
        )
    )
