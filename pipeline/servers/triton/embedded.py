"""Launches the tritonserver that nvidia-pytriton ships, with the stand-in backends."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base import files, triton_facts
from pipeline.base.errors import ConfigError, MissingError
from pipeline.machine import doctor, environment
from pipeline.servers import process
from pipeline.servers.process import Ports, Served, find_ports, on_free_ports
from pipeline.servers.triton import shell_names
from pipeline.servers.triton.launch import Launch, running, server_flags
from pipeline.servers.triton.models import engines_of, ensembles_of, home, models_of
from pipeline.servers.triton.probe import curl_line

__all__ = ["curl_line", "embedded", "engines_of", "ensembles_of", "home", "models_of"]

_STAND_INS = Path(__file__).parent / "backends"
_SHARED = (
    _STAND_INS / "stand_in.py",
    Path(triton_facts.__file__),
    Path(__file__).parents[2] / "formats" / "tensorrt" / "engine_session.py",
)
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - only looked up here


@contextlib.contextmanager
def embedded(
    repository: Path,
    models: Sequence[str],
    *,
    beside: Sequence[Path] = (),
    log_path: Path,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    host: str = "127.0.0.1",
    start_timeout_s: float,
    exit_timeout_s: float = 30.0,
) -> Iterator[Served]:
    """Serve models of a repository, and of roots ``beside`` it, until the block is left; other models are left alone.

    The server dies with the thread that started it; its output goes to ``log_path``. A port of 0 is any free one. Every
    model has answered within ``start_timeout_s``; on leaving, requests in flight have ``exit_timeout_s``.

    Raises:
        ConfigError: no models, or a host or ports that cannot be.
        MissingError: the server, its Python stub, libpython or a named port is not to be had.
        SmokeError: a model did not load or answer, or the server ended.
    """
    if not models:
        raise ConfigError("server: no model to serve", where=str(repository))
    home, stub, libpython = _installed()
    server_id = f"triton-{uuid.uuid4().hex[:12]}"
    roots = (repository, *beside)
    shell_names.require(roots, models)
    with _assembled(log_path, home, stub) as backends, shell_names.links(roots) as served_from:

        def launch() -> contextlib.AbstractContextManager[Served]:
            ports = find_ports(host, Ports(http=http_port, grpc=grpc_port, metrics=metrics_port))
            locations = _locations(home, backends, served_from)
            return running(
                Launch(
                    argv=[*locations, *server_flags(models, server_id, exit_timeout_s), *_addresses(host, ports)],
                    env=_environment(home, libpython),
                    host=_ANY_ADDRESS.get(host, host),
                    ports=ports,
                    server_id=server_id,
                    models=tuple(models),
                    log_path=log_path,
                    start_timeout_s=start_timeout_s,
                    exit_timeout_s=exit_timeout_s,
                )
            )

        with on_free_ports(launch, who="server", log_path=log_path) as served:
            yield served


def _locations(home: Path, backends: Path, roots: Sequence[Path]) -> list[str]:
    return [
        str(home / "bin" / "tritonserver"),
        *(f"--model-repository={root}" for root in roots),
        f"--backend-directory={backends}",
        f"--cache-directory={home / 'caches'}",
    ]


def _addresses(host: str, ports: Ports) -> list[str]:
    flags = []
    for name, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics)):
        address = host
        if ":" in host:  # IPv6, in the forms that gRPC and libevhtp know
            address = f"[{host}]" if name == "grpc" else f"ipv6:{host}"
        flags += [f"--{name}-address={address}", f"--{name}-port={port}"]
    return flags


def _environment(home: Path, libpython: Path) -> dict[str, str]:
    """The stub takes its Python from the first ``python3`` on PATH, and ignores PYTHONPATH and VIRTUAL_ENV.

    The interpreter's own libpython comes first: another build of the same version lacks symbols its modules need. What
    the user's libraries are found by comes last: a driver's libcuda, or a TensorRT that is not from a wheel.
    """
    libraries = (libpython, home.parents[1] / "nvidia_pytriton.libs", os.environ.get("LD_LIBRARY_PATH", ""))
    return {**process.environment(), "LD_LIBRARY_PATH": os.pathsep.join(str(item) for item in libraries if item)}


def _installed() -> tuple[Path, Path, Path]:
    """The server's folder in nvidia-pytriton, the Python stub, and the folder of the interpreter's libpython.

    Raises:
        MissingError: one of them, or shared memory for them to talk through, is missing.
    """
    found = environment.probe(Path.cwd())
    gaps = doctor.lacks_to_serve(found)
    if gaps or not (found.tritonserver and found.stub and found.libpython):
        raise MissingError(
            "server: this machine cannot run the embedded Triton",
            found="\n".join(gaps),
            hint="python -m pipeline doctor",
        )
    return found.tritonserver.parents[1], found.stub, found.libpython.parent


@contextlib.contextmanager
def _assembled(log_path: Path, home: Path, stub: Path) -> Iterator[Path]:
    """A backend directory, for as long as the server runs: beside the log, where a shell takes that path as it is."""
    place = log_path.parent.absolute()
    with contextlib.ExitStack() as stack:
        with files.disk_errors(log_path, "server: assembling its backends"):
            place.mkdir(parents=True, exist_ok=True)
            if shell_names.is_plain(place):
                backends = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place, prefix=".backends-")))
            else:
                backends = stack.enter_context(shell_names.folder_of_our_own())
            _assemble(backends, home, stub)
        yield backends


def _assemble(backends: Path, home: Path, stub: Path) -> None:
    """Lay out a backend directory: ``python/`` with the stub, and the stand-ins, each with what they share.

    One stand-in serves both flavours of TensorRT; it takes its flavour from its folder's name.
    Copies, not links: the server refuses a library whose real path is elsewhere ("escapes backend directory").
    """
    shared = shutil.ignore_patterns("__pycache__", "stand_in.py")
    shutil.copytree(_STAND_INS, backends, dirs_exist_ok=True, ignore=shared)
    shutil.copytree(backends / "tensorrt", backends / "tensorrt_rtx")
    for folder in tuple(backends.iterdir()):
        for file in _SHARED:
            shutil.copy(file, folder)
    python = backends / "python"
    python.mkdir()
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(home / "backends" / "python" / name, python)
    shutil.copy(stub, python)
