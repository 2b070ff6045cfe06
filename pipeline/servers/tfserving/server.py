"""Launches TensorFlow Serving's image on a tree of SavedModels through Docker."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.base import command, network
from pipeline.base.errors import SmokeError
from pipeline.base.values import RunningServer
from pipeline.servers import docker
from pipeline.servers.process import Ports, PortTaken, ServerLog, find_ports, on_free_ports, wait_until_ready

IMAGE = "tensorflow/serving:2.19.1"  # the TensorFlow that writes the SavedModels, or newer
INSIDE = "/models"  # where the tree is in the container; models.config names its folders there
MODELS_CONFIG = "models.config"
USUAL_PORTS = Ports(http=8501, grpc=8500)
_HOST = "127.0.0.1"
_ASK_TIMEOUT_S = 5.0
_GRACE_S = 10.0
_TAIL_CHARACTERS = 1500


def docker_run(tree: str, *, name: str, ports: Ports) -> list[str]:
    """The command line that serves a tree; more flags of the server may follow.

    Args:
        tree: the folder with models.config, absolute.
        name: the container's, or empty for Docker's choice.
        ports: of this machine, for REST (``http``) and gRPC; reachable from this machine alone.
    """
    return [
        "docker",
        "run",
        "--rm",
        *([f"--name={name}"] if name else []),
        f"--publish={_HOST}:{ports.grpc}:8500",
        f"--publish={_HOST}:{ports.http}:8501",
        f"--volume={tree}:{INSIDE}:ro",
        IMAGE,
        f"--model_config_file={INSIDE}/{MODELS_CONFIG}",
    ]


@contextlib.contextmanager
def launch(tree: Path, model: str, *, log_path: Path, start_timeout_s: float) -> Iterator[RunningServer]:
    """Serve a tree until the block is left.

    Args:
        tree: the folder with models.config.
        model: the one that must be available before the block is entered.
        log_path: the container's output is appended here.
        start_timeout_s: until then; fetching the image is not counted.

    Raises:
        MissingError: no Docker engine answers, with the command to run elsewhere; or the image is not to be had.
        SmokeError: the model did not become available, or the server ended.
    """
    name = f"tfserving-{uuid.uuid4().hex[:12]}"
    docker.require_engine(docker_run(str(tree.absolute()), name=name, ports=USUAL_PORTS))
    docker.require_image(IMAGE)
    with docker.killed_at_last(name):
        started = on_free_ports(
            lambda: _running(tree, model, name, log_path, start_timeout_s), who=f"tfserving[{model}]", log_path=log_path
        )
        with started as server:
            yield server


@contextlib.contextmanager
def _running(tree: Path, model: str, name: str, log_path: Path, start_timeout_s: float) -> Iterator[RunningServer]:
    ports, log = find_ports(_HOST, Ports()), ServerLog(log_path)
    child = command.start(docker_run(str(tree.absolute()), name=name, ports=ports), log_path=log_path)
    try:
        url = f"http://{_HOST}:{ports.http}"
        _await(child, url, model, log, start_timeout_s)
        yield RunningServer(
            http_url=url, grpc_url=f"{_HOST}:{ports.grpc}", metrics_url="", pid=child.pid, log_path=log_path
        )
    finally:
        command.stop(child, grace_s=_GRACE_S)


def _await(child: subprocess.Popen[bytes], url: str, model: str, log: ServerLog, timeout_s: float) -> None:
    def awaited() -> str:
        state = _state(url, model)
        return "" if state.startswith("AVAILABLE") else state

    def unready(why: str, state: str) -> SmokeError:
        found = f"{state}\n{log.text()[-_TAIL_CHARACTERS:]}".strip()
        return SmokeError(f"tfserving[{model}]: {why}", found=found, log=str(log.path))

    def check_starting() -> None:
        if child.poll() is not None:
            if log.port_taken():
                raise PortTaken(log.last_lines())
            raise unready("the server ended", _state(url, model))

    late = partial(unready, f"not available within {timeout_s:.0f} s")
    wait_until_ready(awaited, check_starting=check_starting, late=late, deadline=time.monotonic() + timeout_s)


def _state(url: str, model: str) -> str:
    """The state of the newest version, as the model status API tells it, or why there is none."""
    try:
        with network.opener.open(f"{url}/v1/models/{model}", timeout=_ASK_TIMEOUT_S) as answer:
            rows = json.load(answer)["model_version_status"]
    except (OSError, ValueError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    row = max(rows, key=lambda item: int(item["version"]))
    return f"{row['state']} {row.get('status', {}).get('error_message', '')}".strip()
