"""Launches the real TorchServe: Java's frontend, which starts a Python worker per model.

Java is started directly, with the command line that ``torchserve --start`` makes of the same configuration: that
script is a Python process in between, and Java outlives it when it is killed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.base import command
from pipeline.base.errors import ConfigError, MissingError, SmokeError
from pipeline.base.values import RunningServer
from pipeline.machine import doctor, environment
from pipeline.servers import process
from pipeline.servers.process import PortTaken, Served, ServerLog, free_ports, on_free_ports, wait_until_ready
from pipeline.servers.torchserve import api as torchserve_api

_REQUEST_S = 5.0
_SETTLE_S = 0.3  # until the frontend's threads have logged what a dead worker printed
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
class TorchServed(Served):
    """A server whose workers have all opened their models; HTTP and gRPC are those of inference.

    Attributes:
        management_url: ``http://host:port`` of the management API.
    """

    management_url: str


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

    def start() -> contextlib.AbstractContextManager[TorchServed]:
        found = TorchServePorts(**dict(zip(ports.__slots__, free_ports("127.0.0.1", astuple(ports)), strict=True)))
        return _running(java, home, folder, models, found, log_path, start_timeout_s, exit_timeout_s)

    with on_free_ports(start, who="torchserve", log_path=log_path) as served:
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
        **process.environment(),
        "TMPDIR": str(place),
        "LOG_LOCATION": str(place),  # files that repeat its output, which is kept
        "METRICS_LOCATION": str(place),
    }


def _wait_until_ready(
    child: subprocess.Popen[bytes], log: ServerLog, management_url: str, models: Sequence[str], timeout_s: float
) -> None:
    waiting = list(models)

    def awaited() -> str:
        try:
            while waiting and torchserve_api.describe(management_url, waiting[0], timeout_s=_REQUEST_S).ready:
                waiting.pop(0)
        except torchserve_api.NotAnswered as error:
            return str(error)
        return "no worker is READY" if waiting else ""

    def late(state: str) -> SmokeError:
        return SmokeError(
            f"torchserve[{', '.join(waiting[:1] or models)}]: not ready within {timeout_s:.0f} s",
            found=f"{state}\n{log.last_lines()}",
            hint="raise serve.start_timeout_s, or read its log",
            log=str(log.path),
        )

    deadline = time.monotonic() + timeout_s
    wait_until_ready(awaited, check_starting=lambda: _check_starting(child, log), late=late, deadline=deadline)


def _check_starting(child: subprocess.Popen[bytes], log: ServerLog) -> None:
    """Say why the server, or a worker, ended before it was ready, if it did."""
    if _WORKER_LOST.search(log.text()):
        time.sleep(_SETTLE_S)
        raise _worker_error(log)
    if child.poll() is None:
        return
    text = log.text()
    if log.port_taken():
        raise PortTaken(log.last_lines())
    if "UnsupportedClassVersionError" in text:
        raise MissingError(
            "torchserve: this Java is too old for it", hint=doctor.JAVA_FIX, found=log.last_lines(), log=str(log.path)
        )
    _check_alive(child, log)


def _check_alive(child: subprocess.Popen[bytes], log: ServerLog) -> None:
    status = child.poll()
    if status is not None:
        raise SmokeError(
            f"torchserve: it ended with status {status}", found=log.last_lines(), hint="read its log", log=str(log.path)
        )


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
        found="\n".join([*places[-1:], *raised[:5]]) or log.last_lines(),
        hint="read its log",
        log=str(log.path),
    )
