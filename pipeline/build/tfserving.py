"""A SavedModel for TensorFlow Serving: ``<root>/<name>/<N>/``, ``models.config``, and the proof of both."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import StageError
from pipeline.base.values import RepositoryEntry
from pipeline.build.run import Run
from pipeline.build.variant import manifest_of
from pipeline.formats.saved_model import tfserving_messages
from pipeline.plan import TfServingPlan
from pipeline.proof.ledger import Ledger
from pipeline.repository import versions
from pipeline.servers.tfserving import server
from pipeline.servers.tfserving.checks import Suite, TfServingExpectation

SCRIPT = "serve.sh"
_LOOKS_EVERY_S = 60  # at models.config: a model that a later build adds is then served without a restart


def emit(run: Run, plan: TfServingPlan) -> None:
    """Put the variant's SavedModel into the tree; a failure is kept to this row."""
    with run.guarded(plan, "build"):
        made = run.results[plan.variant.key]
        if made.artifact is None or made.error:
            raise StageError(
                f"tfserving[{plan.model}]: its SavedModel was not made",
                found=f"{plan.variant.identifier} failed",
                hint="see the error of that variant",
            )
        with run.stage(f"repository[{plan.identifier}]", plan.identifier) as stage:
            version = versions.Version(
                model_name=plan.model,
                file_name="",
                artifact=made.artifact.path,
                model_files={},
                golden=run.golden_path,
                manifest=manifest_of(run, plan.variant, made.artifact),
            )
            entry = run.publish(plan, plan.root, version, stage)
            write_tree_files(plan.root)
        run.update(
            plan,
            artifact=made.artifact,
            entry=entry,
            parity=made.parity,
            accuracy=made.accuracy,
            cached=made.cached and not entry.created,
        )
        run.note(plan, f"launch: {launch_command(plan.root)}")


def write_tree_files(root: Path) -> None:
    """Write ``models.config`` for every model in the tree, and the script that launches TF-Serving on it.

    Raises:
        MissingError: the disk is full, or another build holds the tree for too long.
    """
    with files.locked(versions.state_dir(root) / "lock", versions.LOCK_TIMEOUT_S):
        names = sorted(item.name for item in root.iterdir() if versions.version_numbers(item))
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


def adopt(run: Run, plan: TfServingPlan) -> None:
    """Take the newest version in the tree as what shall be proven."""
    run.adopt(plan, plan.root, plan.model)


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
        if serve.engine == "container":
            log_path = run.directory / f"{plan.identifier}.server.log"
            with server.launch(
                plan.root, plan.model, log_path=log_path, start_timeout_s=serve.start_timeout_s
            ) as running:
                result = ledger.run(plan.identifier, suite.served(running), stage.progress)
        else:
            run.note(plan, "the server was not run: TensorFlow's own loader answered in its place")
        result = replace(result, checks=(versions.manifest_check(entry), *result.checks))
        stage.result = f"{len(result.checks)} checks"
        run.judge(plan, result)


def _suite(run: Run, plan: TfServingPlan, entry: RepositoryEntry) -> Suite:
    return Suite(
        TfServingExpectation(
            root=plan.root,
            model=plan.model,
            version=entry.version,
            signature=run.signature,
            golden=run.golden,
            max_batch_size=plan.variant.max_batch_size,
            tolerance=plan.variant.tolerance,
            metadata_path=run.directory / f"{plan.identifier}.metadata.json",
        )
    )
