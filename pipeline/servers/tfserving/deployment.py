"""A version for TensorFlow Serving, ``<root>/<name>/<N>/``, what the tree holds besides, and the proof of both."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.base import files
from pipeline.base.values import Progress, RepositoryEntry, SmokeCheck, SmokeResult
from pipeline.formats.saved_model import tfserving_messages
from pipeline.proof.ledger import Ledger
from pipeline.repository.versions import LOCK_TIMEOUT_S, Version, global_lock, version_numbers
from pipeline.servers.planned import DeploymentPlan
from pipeline.servers.tfserving import checks, server
from pipeline.servers.work import Done, Emission, Given, Making, Suite

SCRIPT = "serve.sh"
_LOOKS_EVERY_S = 60  # at models.config: a model that a later build adds is then served without a restart


def saved_model(given: Given[DeploymentPlan], making: Making) -> Iterator[Emission]:
    """The variant's SavedModel as it is."""
    version = Version(
        model_name=given.row.model,
        file_name="",
        artifact=making.artifact.path,
        model_files={},
        golden=given.golden_path,
        manifest=making.manifest,
    )
    yield Emission(version=version, artifact=making.artifact)


def complete(root: Path) -> str:
    """Write ``models.config`` for every model in the tree, and the script that launches TF-Serving on it.

    Returns:
        What to type to serve the tree with Docker.

    Raises:
        MissingError: the disk is full, or another build holds the tree for too long.
    """
    with files.locked(global_lock(root), LOCK_TIMEOUT_S):
        names = sorted(item.name for item in root.iterdir() if version_numbers(item))
        files.write_atomic(root / server.MODELS_CONFIG, tfserving_messages.models_config(names, server.INSIDE))
        files.write_atomic(root / SCRIPT, _script())
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


@contextlib.contextmanager
def opened(given: Given[DeploymentPlan], entry: RepositoryEntry, intact: SmokeCheck) -> Iterator[Suite]:
    """What holds a version against the golden samples and TF-Serving's own messages.

    With ``serve.engine: container`` TensorFlow Serving itself is launched and asked over REST and gRPC; else
    TensorFlow's loader runs what the server would run, and the report says that the server was not run.
    """
    if given.serve.engine == "container":
        yield Suite(check=partial(_check, given, entry))
        return
    note = "the server was not run: TensorFlow's own loader answered in its place"
    yield Suite(check=partial(_check, given, entry), level="inspected", notes=(note,))


def _check(given: Given[DeploymentPlan], entry: RepositoryEntry, progress: Progress, done: Done) -> SmokeResult:
    ledger = Ledger()
    suite = checks.Suite(
        checks.TfServingExpectation(
            root=entry.root,
            model=given.row.model,
            version=entry.version,
            signature=given.signature,
            golden=given.golden,
            max_batch_size=given.row.max_batch_size,
            tolerance=given.row.variant.tolerance,
            metadata_path=given.directory / f"{given.row.identifier}.metadata.json",
        )
    )
    result = ledger.run(given.row.identifier, suite.offline(), progress)
    if given.serve.engine == "container":
        log_path, timeout_s = given.directory / f"{given.row.identifier}.server.log", given.serve.start_timeout_s
        with server.launch(entry.root, given.row.model, log_path=log_path, start_timeout_s=timeout_s) as running:
            result = ledger.run(given.row.identifier, suite.served(running), progress)
    return result
