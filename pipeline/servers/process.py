"""A server as a child process, whatever serves: its ports, its log, and when it is ready."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.base.errors import ConfigError, MissingError, PipelineError
from pipeline.base.values import RunningServer

_POLL_S = 0.05
_START_ATTEMPTS = 5
_SHOWN_LINES = 5
# Triton's own words, Docker's for a port it should publish, and Java's
_PORT_TAKEN = re.compile(
    r"Socket '[^']*' already in use|port is already allocated|[Aa]ddress already in use|Failed to bind"
)

# what a server may know of this process's environment; anything else could be a secret
_ENVIRONMENT = (
    "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)  # fmt: skip

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A server that is up and has answered an inference for each model.

    Attributes:
        server: where it listens.
        check_alive: raises SmokeError, with the last errors of its log, when its process has ended.
    """

    server: RunningServer
    check_alive: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """TCP ports of a server; 0 stands for any free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


class PortTaken(Exception):  # noqa: N818 - never leaves this room: the launch is tried again
    """Another process took a port between our finding it free and the server's binding it."""


def find_ports(host: str, asked: Ports) -> Ports:
    """Check that the named ports are free on ``host``, and find a free one for each that is 0.

    Raises:
        ConfigError: the same port is named twice, or ``host`` is no address of this machine.
        MissingError: a named port is taken, or may not be bound.
    """
    http, grpc, metrics = free_ports(host, (asked.http, asked.grpc, asked.metrics))
    return Ports(http=http, grpc=grpc, metrics=metrics)


def free_ports(host: str, asked: Sequence[int]) -> list[int]:
    """The same for any number of ports."""
    named = [port for port in asked if port]
    if len(named) != len(set(named)):
        raise ConfigError("server: one port is asked for twice", found=", ".join(map(str, named)))
    with contextlib.ExitStack() as held:  # all at once, so that no free one is found twice
        return [_bind(held, host, port) for port in asked]


def _bind(held: contextlib.ExitStack, host: str, port: int) -> int:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"server: no such host {host}", found=str(error), hint="127.0.0.1") from error
    listener = held.enter_context(socket.socket(family, kind))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no obstacle
    try:
        listener.bind(address)
        listener.listen(1)
    except OSError as error:
        holder = _holder(port)
        raise MissingError(
            f"server: cannot listen on {host} port {port}",
            found=f"{error.strerror}{f', by {holder}' if holder else ''}",
            hint="stop that process, or name another port (0 takes a free one)",
        ) from error
    return int(listener.getsockname()[1])


def _holder(port: int) -> str:
    """The process that listens on ``port``, if the kernel lets us see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr  # (host, port)
            listens = connection.status == psutil.CONN_LISTEN and address and address[1] == port
            if listens and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        return ""
    return ""


def environment() -> dict[str, str]:
    """What a server, and what it starts, may know of this process's environment; its Python is this one."""
    own = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return {**own, "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"}


class ServerLog:
    """What one server has written to its log since this object was made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = path.stat().st_size if path.exists() else 0

    def text(self) -> str:
        """Everything since the start; empty when there is no log."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as stream:
            stream.seek(self._start)
            return stream.read().decode(errors="replace")

    def last_lines(self) -> str:
        """How it ends."""
        return "\n".join(self.text().splitlines()[-_SHOWN_LINES:])

    def port_taken(self) -> bool:
        """Whether the server could not bind a port."""
        return _PORT_TAKEN.search(self.text()) is not None


@contextlib.contextmanager
def on_free_ports(
    start: Callable[[], contextlib.AbstractContextManager[_T]], *, who: str, log_path: Path
) -> Iterator[_T]:
    """Run what ``start`` gives, which finds its ports anew each time that it loses one before it binds it.

    Args:
        start: raises PortTaken when it has lost one; a named port that is taken it refuses.
        who: for messages.
        log_path: the same.

    Raises:
        MissingError: it lost them each time.
    """
    with contextlib.ExitStack() as stack:
        for left in reversed(range(_START_ATTEMPTS)):
            try:
                started = stack.enter_context(start())
                break
            except PortTaken as error:
                if not left:
                    raise MissingError(
                        f"{who}: its ports were taken each time", found=str(error), log=str(log_path)
                    ) from error
        yield started


def wait_until_ready(
    awaited: Callable[[], str],
    *,
    check_starting: Callable[[], None],
    late: Callable[[str], PipelineError],
    deadline: float,
) -> None:
    """Ask a server until it is ready, as long as its process lives.

    Args:
        awaited: asks it one step further; tells what is still awaited, and nothing when it is ready.
        check_starting: raises why its process has ended, if it has.
        late: what to raise at the deadline, of what was still awaited.
        deadline: as ``time.monotonic`` counts.
    """
    while True:
        check_starting()
        waiting_for = awaited()
        in_time = time.monotonic() <= deadline
        if in_time and not waiting_for:
            return
        if not in_time:
            check_starting()
            raise late(waiting_for or "it was ready only after that")
        time.sleep(_POLL_S)
