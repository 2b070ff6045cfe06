"""A tritonserver as a child process, however it is launched (embedded.py, container.py): when it is ready or dead."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import command
from pipeline.base.errors import SmokeError
from pipeline.base.values import RunningServer
from pipeline.servers.process import Ports, PortTaken, Served, ServerLog, wait_until_ready
from pipeline.servers.triton import probe

_POLL_S = 0.05
_UNLOAD_S = 5.0  # for unloading models once no request is in flight; a model whose stub died would take for ever
_DRAINED = "All models are stopped, unloading models"
_SHOWN_ERRORS = 5
# error lines every start without a GPU writes; they explain nothing (measured on 2.51.0)
_HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream for pipe")
_ERROR_LINE = re.compile(r"^(?:E\d{4} \S+\s+\d+ \S+\] |error: )(.*)$", re.MULTILINE)
_LOAD_FAILURE = re.compile(
    r"failed to load '(?P<model>[^']+)' version \d+: [\w ]+: (?P<reason>.*)"
    r"|failed to (?:load|poll) model '(?P<absent>[^']+)': (?P<why>.*)"
    r"|Poll failed for model directory '(?P<folder>[^']+)': (?P<problem>.*)"
)
_PYTHON_ERROR = re.compile(r"^(?:RefusedError: )?(.*?)(?:\\n\\nAt:.*)?$", re.DOTALL)


class TritonLog(ServerLog):
    """What one tritonserver has written to its log since this object was made."""

    def last_errors(self) -> str:
        """The last error messages, one to a line; the last lines where there is no error."""
        errors = [line.strip('"') for line in _ERROR_LINE.findall(self.text())]
        errors = [line for line in errors if not any(known in line for known in _HARMLESS)]
        return "\n".join(errors[-_SHOWN_ERRORS:]) or self.last_lines()

    def load_failures(self) -> dict[str, str]:
        """Why a model did not load, by model."""
        failures: dict[str, str] = {}
        for line in _ERROR_LINE.findall(self.text()):
            if match := _LOAD_FAILURE.match(line.strip('"')):
                found = match.groupdict()
                model = found["model"] or found["absent"] or found["folder"]
                reason = found["reason"] or found["why"] or found["problem"]
                failures.setdefault(Path(model).name, _plain(reason))
        return failures


def _plain(reason: str) -> str:
    """A reason without a stand-in backend's exception name and the traceback of its Python."""
    match = _PYTHON_ERROR.match(reason)
    assert match is not None, "the pattern matches any text"
    return match[1].replace("\\n", "\n").replace('\\"', '"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start one server.

    Attributes:
        argv: the command line.
        env: the child's whole environment, or None for this process's own.
        host: address clients reach it at.
        ports: where it will listen.
        server_id: what it answers as its name, so that a stranger on our port is not taken for it.
        models: names of the models it must serve.
        log_path: appended to.
        start_timeout_s: from the start to the last model's first answer.
        exit_timeout_s: how long requests in flight may take after SIGTERM.
    """

    argv: Sequence[str]
    env: Mapping[str, str] | None
    host: str
    ports: Ports
    server_id: str
    models: Sequence[str]
    log_path: Path
    start_timeout_s: float
    exit_timeout_s: float


def server_flags(models: Sequence[str], server_id: str, exit_timeout_s: float) -> list[str]:
    """What tritonserver is told however it is launched: exactly these models, exactly their configurations."""
    return [
        f"--id={server_id}",
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in models),
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        f"--exit-timeout-secs={max(1, round(exit_timeout_s))}",
    ]


@contextlib.contextmanager
def running(launch: Launch) -> Iterator[Served]:
    """Start a server, wait until it answers, and stop it on leaving: drained by SIGTERM, then its session killed.

    Raises:
        SmokeError: a model did not load or answer, the server ended, or it took longer than the timeout.
        PortTaken: it could not bind one of its ports.
        MissingError: the program cannot be run.
    """
    log = TritonLog(launch.log_path)
    deadline = time.monotonic() + launch.start_timeout_s
    child = command.start(launch.argv, log_path=launch.log_path, env=launch.env)
    segments: set[Path] = set()
    try:
        host = f"[{launch.host}]" if ":" in launch.host else launch.host
        server = RunningServer(
            http_url=f"http://{host}:{launch.ports.http}",
            grpc_url=f"{host}:{launch.ports.grpc}",
            metrics_url=f"http://{host}:{launch.ports.metrics}",
            pid=child.pid,
            log_path=launch.log_path,
        )
        _wait_until_ready(child, log, server.http_url, launch, deadline)
        segments |= _shared_memory(child.pid)

        def check_alive() -> None:
            segments.update(_shared_memory(child.pid))  # models loaded since have others
            _check_alive(child, log)

        yield Served(server=server, check_alive=check_alive)
    finally:
        segments |= _shared_memory(child.pid)
        try:
            _drain(child, launch)
        finally:  # also when a second Ctrl-C cuts the draining short
            command.stop(child, grace_s=0.0)
        for segment in segments:  # a killed server or stub leaves its own behind
            segment.unlink(missing_ok=True)


def _drain(child: subprocess.Popen[bytes], launch: Launch) -> None:
    """Let the server answer what it has accepted; return when it has ended, or has had its time."""
    if child.poll() is not None:
        return
    log = TritonLog(launch.log_path)
    child.terminate()
    deadline, unloading = time.monotonic() + launch.exit_timeout_s + _UNLOAD_S, False
    while child.poll() is None and time.monotonic() < deadline:
        if not unloading and _DRAINED in log.text():
            deadline, unloading = time.monotonic() + _UNLOAD_S, True
        time.sleep(_POLL_S)


def _shared_memory(pid: int) -> set[Path]:
    """Files in /dev/shm that a Triton process has mapped for its Python stubs."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has ended
        return set()
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/" in line and "_shm_region_" in line}  # noqa: S108
    return {Path(path) for path in paths}


def _check_alive(child: subprocess.Popen[bytes], log: TritonLog) -> None:
    status = child.poll()
    if status is not None:
        raise SmokeError(
            f"server: it ended {_how(status)}", found=log.last_errors(), hint="read its log", log=str(log.path)
        )


def _how(status: int) -> str:
    return f"on signal {-status}" if status < 0 else f"with status {status}"


def _wait_until_ready(
    child: subprocess.Popen[bytes], log: TritonLog, http_url: str, launch: Launch, deadline: float
) -> None:
    answered: set[tuple[str, str]] = set()

    def awaited() -> str:
        try:
            return _next_step(http_url, launch, answered, deadline)
        except probe.NotAnswered as error:
            return str(error)

    def late(waiting_for: str) -> SmokeError:
        return SmokeError(
            f"server: not ready within {launch.start_timeout_s:.0f} s",
            found=f"still waiting: {waiting_for}\n{log.last_errors()}".strip(),
            hint="raise serve.start_timeout_s, or read its log",
            log=str(log.path),
        )

    wait_until_ready(awaited, check_starting=lambda: _check_starting(child, log), late=late, deadline=deadline)


def _check_starting(child: subprocess.Popen[bytes], log: TritonLog) -> None:
    """Say why a server ended before it was ready, if it did."""
    if child.poll() is None:
        return
    if log.port_taken():
        raise PortTaken(log.last_errors())
    if failures := log.load_failures():
        raise _load_error(failures, log)
    _check_alive(child, log)


def _load_error(failures: Mapping[str, str], log: TritonLog) -> SmokeError:
    names = sorted(failures)
    found = "\n".join(f"{name}: {failures[name]}" for name in names) if len(names) > 1 else failures[names[0]]
    return SmokeError(
        f"server[{', '.join(names)}]: model{'s' if len(names) > 1 else ''} {', '.join(names)} did not load",
        found=found,
        log=str(log.path),
    )


def _next_step(http_url: str, launch: Launch, answered: set[tuple[str, str]], deadline: float) -> str:
    """Ask the server one step further; return what is still awaited, or nothing when all models answered."""
    left_s = max(0.1, deadline - time.monotonic())
    if probe.server_name(http_url, timeout_s=left_s) != launch.server_id:
        return "another server answers on this port"
    states = probe.index(http_url, timeout_s=left_s)
    rows = [row for row in states if row.name in launch.models]
    if absent := set(launch.models) - {row.name for row in rows}:
        return f"model {', '.join(sorted(absent))} is not loaded"
    if loading := [row for row in rows if row.state != "READY"]:
        return f"model {loading[0].name} version {loading[0].version} is {loading[0].state}"
    for row in rows:
        if (row.name, row.version) not in answered:
            probe.infer_zeros(http_url, row.name, row.version, timeout_s=max(0.1, deadline - time.monotonic()))
            answered.add((row.name, row.version))
    return ""
