"""Launches the real TorchServe: Java's frontend, which starts a Python worker per model.

Java is started directly, with the command line that ``torchserve --start`` makes of the same configuration: that
script is a Python process in between, and Java outlives it when it is killed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.base import command
from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.base.values import RunningServer
from pipeline.machine import doctor, environment
from pipeline.servers.process import ServerLog, free_ports
from pipeline.servers.torchserve import api as torchserve_api

_POLL_S = 0.1
_START_ATTEMPTS = 5
_REQUEST_S = 5.0
_SETTLE_S = 0.3  # until the frontend's threads have logged what a dead worker printed
# what the server and its workers may know of this process's environment; anything else could be a secret
_ENVIRONMENT = (
    "HOME", "LANG", "LC_ALL", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)  # fmt: skip
_PORT_TAKEN = re.compile(r"Failed to bind|Address already in use")
_WORKER_LOST = re.compile(r"Retry worker: \d+ in")  # what the frontend writes whenever one has ended
_MODEL_LINE = re.compile(r"^\S+ \[\w+ *\] W-\d+-(?P<model>.+?)_[\d.]+-std(?:out|err) MODEL_LOG - (?P<text>.*)$")
_PLACE = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')
_CHAINED = ("Traceback (", "During handling of", "The above exception", "Backend worker process died")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServePorts:
    """TCP ports of a server; 0 stands for any free one."""

    inference: int = 0
    management: int = 0
    metrics: int = 0
    grpc_inference: int = 0
    grpc_management: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServed:
    """A server whose workers have all opened their models.

    Attributes:
        server: where it listens; HTTP and gRPC are those of inference.
        management_url: ``http://host:port`` of the management API.
        check_alive: raises SmokeError when its process has ended.
    """

    server: RunningServer
    management_url: str
    check_alive: Callable[[], None]


class _PortTaken(Exception):  # noqa: N818 - never leaves this file: the launch is tried again
    pass


@contextlib.contextmanager
def launched(
    folder: Path,
    models: Sequence[str],
    *,
    log_path: Path,
    ports: TorchServePorts = TorchServePorts(),
    start_timeout_s: float,
    exit_timeout_s: float = 15.0,
) -> Iterator[TorchServed]:
    """Serve a model store on loopback until the block is left; the server dies with the thread that started it.

    Args:
        folder: holds ``model_store/`` and ``config.properties``, whose ports are replaced.
        models: names of the models in it.
        log_path: the server's output, its workers' too, is appended here.
        ports: where it shall listen.
        start_timeout_s: until a worker of every model is READY.
        exit_timeout_s: how long requests in flight may take on leaving.

    Raises:
        MissingError: no Java, no torchserve, or a named port is not to be had.
        SmokeError: a worker did not open its model, the server ended, or it took too long.
        ConfigError: ``folder`` holds no model store, or one port is named twice.
    """
    java, home = installed()
    settings = folder / "config.properties"
    if not (folder / "model_store").is_dir() or not settings.is_file():
        raise ConfigError("torchserve: no model store", found=f"expected model_store/ and {settings.name} in {folder}")
    with contextlib.ExitStack() as stack:
        for attempt in range(_START_ATTEMPTS):
            found = TorchServePorts(**dict(zip(ports.__slots__, free_ports("127.0.0.1", astuple(ports)), strict=True)))
            try:
                served = stack.enter_context(
                    _running(java, home, folder, models, found, log_path, start_timeout_s, exit_timeout_s)
                )
                break
            except _PortTaken as error:  # another process was faster than the server; a named port is refused next turn
                if attempt == _START_ATTEMPTS - 1:
                    raise MissingError(
                        "torchserve: its ports were taken each time", found=str(error), log=str(log_path)
                    ) from error
        yield served


def installed() -> tuple[Path, Path]:
    """Java, and the folder that holds the package ``ts``.

    Raises:
        MissingError: one of them, or something the workers import, is missing.
    """
    found = environment.probe(Path.cwd())
    gaps = doctor.lacks_to_serve_torchserve(found)
    if gaps or found.java is None:
        raise MissingError(
            "torchserve: this machine cannot run it", found="\n".join(gaps), hint="python -m pipeline doctor"
        )
    # by the distribution, since anything may be called `ts` where this is run
    return found.java, Path(str(importlib.metadata.distribution("torchserve").locate_file(""))).resolve()


@contextlib.contextmanager
def _running(
    java: Path,
    home: Path,
    folder: Path,
    models: Sequence[str],
    ports: TorchServePorts,
    log_path: Path,
    start_timeout_s: float,
    exit_timeout_s: float,
) -> Iterator[TorchServed]:
    # Its own temporary folder and working directory: extracted archives, log files and key_file.json go there, and the
    # workers' sockets, named the same in every TorchServe. Their path must be short (108 bytes, unix(7)).
    with tempfile.TemporaryDirectory(prefix="torchserve-", ignore_cleanup_errors=True) as place:
        settings = Path(place) / "config.properties"
        text = (folder / "config.properties").read_text(encoding="utf-8")
        settings.write_text(_on_ports(text, ports), encoding="utf-8")
        log = ServerLog(log_path)
        child = command.start(
            _command_line(java, home, (folder / "model_store").absolute(), settings, Path(place)),
            log_path=log_path,
            env=_environment(Path(place)),
            cwd=Path(place),
        )
        try:
            served = TorchServed(
                server=RunningServer(
                    http_url=f"http://127.0.0.1:{ports.inference}",
                    grpc_url=f"127.0.0.1:{ports.grpc_inference}",
                    metrics_url=f"http://127.0.0.1:{ports.metrics}",
                    pid=child.pid,
                    log_path=log_path,
                ),
                management_url=f"http://127.0.0.1:{ports.management}",
                check_alive=lambda: _check_alive(child, log),
            )
            _wait_until_ready(child, log, served.management_url, models, start_timeout_s)
            yield served
        finally:
            command.stop(child, grace_s=exit_timeout_s)


def _on_ports(text: str, ports: TorchServePorts) -> str:
    """The settings as they are emitted, at other ports."""
    values = {
        "inference_address": f"http://127.0.0.1:{ports.inference}",
        "management_address": f"http://127.0.0.1:{ports.management}",
        "metrics_address": f"http://127.0.0.1:{ports.metrics}",
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
    }
    kept = [line for line in text.splitlines() if line.partition("=")[0].strip() not in values]
    return "\n".join([*kept, *(f"{key}={value}" for key, value in values.items())]) + "\n"


def _command_line(java: Path, home: Path, store: Path, settings: Path, place: Path) -> list[str]:
    """What ts/model_server.py (0.12.0) runs for ``torchserve --start --ncs``."""
    return [
        str(java),
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={place}",
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(settings),
        "-s",
        str(store),
        "-ncs",
    ]


def _environment(place: Path) -> Mapping[str, str]:
    return {
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": str(place),
        "LOG_LOCATION": str(place),  # files that repeat its output, which is kept
        "METRICS_LOCATION": str(place),
    }


def _wait_until_ready(
    child: subprocess.Popen[bytes], log: ServerLog, management_url: str, models: Sequence[str], timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    waiting = list(models)
    while waiting:
        _check_starting(child, log)
        state = "no worker is READY"
        try:
            while waiting and torchserve_api.describe(management_url, waiting[0], timeout_s=_REQUEST_S).ready:
                waiting.pop(0)
        except torchserve_api.NotAnswered as error:
            state = str(error)
        if waiting and time.monotonic() > deadline:
            raise SmokeError(
                f"torchserve[{waiting[0]}]: not ready within {timeout_s:.0f} s",
                found=f"{state}\n{_last_lines(log)}",
                hint="raise serve.start_timeout_s, or read its log",
                log=str(log.path),
            )
        if waiting:
            time.sleep(_POLL_S)


def _check_starting(child: subprocess.Popen[bytes], log: ServerLog) -> None:
    """Say why the server, or a worker, ended before it was ready, if it did."""
    if _WORKER_LOST.search(log.text()):
        time.sleep(_SETTLE_S)
        raise _worker_error(log)
    if child.poll() is None:
        return
    text = log.text()
    if _PORT_TAKEN.search(text):
        raise _PortTaken(_last_lines(log))
    if "UnsupportedClassVersionError" in text:
        raise MissingError(
            "torchserve: this Java is too old for it", hint=doctor.JAVA_FIX, found=_last_lines(log), log=str(log.path)
        )
    _check_alive(child, log)


def _check_alive(child: subprocess.Popen[bytes], log: ServerLog) -> None:
    status = child.poll()
    if status is not None:
        raise SmokeError(
            f"torchserve: it ended with status {status}", found=_last_lines(log), hint="read its log", log=str(log.path)
        )


def _last_lines(log: ServerLog) -> str:
    return "\n".join(log.text().splitlines()[-5:])


def _worker_error(log: ServerLog) -> SmokeError:
    """What a worker raised, and where: the first of a chain, since TorchServe hides an import error behind its own."""
    rows = [match for line in log.text().splitlines() if (match := _MODEL_LINE.match(line))]
    texts = [row["text"] for row in rows]
    starts = [number for number, text in enumerate(texts) if text.startswith("Traceback (")] or [max(0, len(texts) - 5)]
    first = texts[slice(*starts[:2])] if len(starts) > 1 else texts[starts[0] :]
    places = [f"{match['file']}, line {match['line']}" for text in first if (match := _PLACE.match(text))]
    raised = [text for text in texts[starts[0] :] if text.strip() and not text.startswith((" ", *_CHAINED))]
    model = rows[-1]["model"] if rows else "?"
    return SmokeError(
        f"torchserve[{model}]: its worker died while it started",
        found="\n".join([*places[-1:], *raised[:5]]) or _last_lines(log),
        hint="read its log",
        log=str(log.path),
    )
