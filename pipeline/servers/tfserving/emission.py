"""A version for TensorFlow Serving, ``<root>/<name>/<N>/``, and what the tree holds beside its models."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from pipeline.base import files
from pipeline.formats.saved_model import tfserving_messages
from pipeline.repository.versions import LOCK_TIMEOUT_S, Version, global_lock, version_numbers
from pipeline.servers.tfserving import server
from pipeline.servers.work import Emission, Given, Making

SCRIPT = "serve.sh"
_LOOKS_EVERY_S = 60  # at models.config: a model that a later build adds is then served without a restart


def saved_model(given: Given, making: Making) -> Iterator[Emission]:
    """The variant's SavedModel as it is."""
    version = Version(
        model_name=given.model,
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
