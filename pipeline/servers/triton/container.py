"""Launches NVIDIA's Triton image of a release through Docker."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base import model_config
from pipeline.base.errors import ConfigError
from pipeline.servers import docker
from pipeline.servers.process import Ports, Served, find_ports, on_free_ports
from pipeline.servers.triton.launch import Launch, running, server_flags

_IMAGE = "nvcr.io/nvidia/tritonserver"
_HOST = "127.0.0.1"
_USUAL_PORTS = Ports(http=8000, grpc=8001, metrics=8002)


@contextlib.contextmanager
def launch(
    repository: Path,
    models: Sequence[str],
    *,
    release: str,
    log_path: Path,
    start_timeout_s: float,
    exit_timeout_s: float = 30.0,
) -> Iterator[Served]:
    """Serve models of a repository, mounted read-only, from a release's image (``YY.MM``) until the block is left.

    The container ends with this process, unless this process is killed outright: Docker's client dies then, and
    ``docker rm --force`` of the name in the log is left to do. The container's output is appended to ``log_path``.
    Every model has answered once within ``start_timeout_s``, which does not count the fetching of the image; requests
    in flight may take ``exit_timeout_s`` on leaving.

    Raises:
        ConfigError: no models, or one whose configuration cannot be read.
        MissingError: no Docker engine answers, with the command to run elsewhere; or the image is not to be had.
        SmokeError: a model did not load or answer, or the server ended.
    """
    if not models:
        raise ConfigError("server: no model to serve", where=str(repository))
    name = f"triton-{uuid.uuid4().hex[:12]}"

    def argv(ports: Ports) -> list[str]:
        started = docker_run(repository, models, release=release, name=name, ports=ports)
        return [*started, *server_flags(models, name, exit_timeout_s)]

    def launch() -> contextlib.AbstractContextManager[Served]:
        ports = find_ports(_HOST, Ports())
        return running(
            Launch(
                argv=argv(ports),
                env=None,  # Docker's client finds its engine and credentials there; the container gets none of it
                host=_HOST,
                ports=ports,
                server_id=name,
                models=tuple(models),
                log_path=log_path,
                start_timeout_s=start_timeout_s,
                exit_timeout_s=exit_timeout_s,
            )
        )

    docker.require_engine(argv(_USUAL_PORTS))
    docker.require_image(f"{_IMAGE}:{release}-py3")
    with docker.killed_at_last(name), on_free_ports(launch, who="server", log_path=log_path) as served:
        yield served


def docker_run(repository: Path, models: Sequence[str], *, release: str, name: str, ports: Ports) -> list[str]:
    """The command line that starts the image's tritonserver on a repository; more of its flags may follow.

    Raises:
        ConfigError: a model's configuration cannot be read.
    """
    published = ((ports.http, 8000), (ports.grpc, 8001), (ports.metrics, 8002))
    return [
        "docker",
        "run",
        "--rm",
        f"--name={name}",
        *(["--gpus=all"] if any(_wants_gpu(repository, model) for model in models) else []),
        "--user=triton-server",
        "--shm-size=1g",
        "--ulimit=memlock=-1",
        "--ulimit=stack=67108864",
        *(f"--publish={_HOST}:{outside}:{inside}" for outside, inside in published),
        f"--volume={repository.absolute()}:/models:ro",
        f"{_IMAGE}:{release}-py3",
        "tritonserver",
        "--model-repository=/models",
        # such a plan carries code of its own (the lean runtime), which TensorRT runs only when told to
        *(
            ["--backend-config=tensorrt,version-compatible=true"]
            if any(_version_compatible(repository / model) for model in models)
            else []
        ),
    ]


def _version_compatible(model_dir: Path) -> bool:
    """Whether a model has a plan built for later TensorRT versions too, by the sidecars beside its plans."""
    for path in model_dir.glob("*/*.plan.json"):
        try:
            options = json.loads(path.read_text(encoding="utf-8")).get("options", {})
        except (OSError, ValueError, AttributeError):  # what is wrong with it lint and the manifest tell
            continue
        if isinstance(options, dict) and options.get("version_compatible") is True:
            return True
    return False


def _wants_gpu(repository: Path, model: str) -> bool:
    path = repository / model / "config.pbtxt"
    try:
        config = model_config.to_dict(model_config.parse_text(path.read_text(), str(path)))
    except OSError as error:
        raise ConfigError(f"no model {model} in the repository", found=str(error), where=str(path)) from error
    return any(group.get("kind") == "KIND_GPU" for group in config.get("instance_group", ()))
