"""The running of checks over two protocols: each one's outcome is kept, and a lost server is not asked again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.base.errors import PipelineError, SmokeError
from pipeline.base.values import Progress, SmokeCheck, SmokeResult
from pipeline.proof.judge import WrongError
from pipeline.servers.triton.client import shared_memory
from pipeline.servers.triton.client.connection import GrpcConnection, HttpConnection
from pipeline.servers.triton.client.messages import Connection, NoAnswerError, RefusedError

Protocol = Literal["http", "grpc"]
Row = tuple[str, Protocol, Callable[[], str]]
"""A check: its title, its protocol, and what it does; that returns its detail, or raises what went wrong."""

DEAD_STUB = "is not healthy"  # "Stub process 'x_0' is not healthy."; Triton 2.51 never restarts one


@contextlib.contextmanager
def connected(
    model: str, http_url: str, grpc_url: str, request_timeout_s: float
) -> Iterator[tuple[HttpConnection, GrpcConnection, dict[str, str]]]:
    """Both connections, and why one of them does not work, by its protocol.

    Raises:
        SmokeError: neither works.
    """
    http, grpc = HttpConnection(http_url, request_timeout_s), GrpcConnection(grpc_url, request_timeout_s)
    with contextlib.closing(http), contextlib.closing(grpc):
        lost = _unreachable((http, grpc))
        if len(lost) == 2:
            raise SmokeError(
                f"smoke[{model}]: no server answers at {http_url} or {grpc_url}",
                found="; ".join(lost.values()),
                hint="check the addresses, and that the server has started",
            )
        yield http, grpc, lost


def _unreachable(connections: Sequence[Connection]) -> dict[str, str]:
    lost: dict[str, str] = {}
    for connection in connections:
        try:
            connection.live()
        except (NoAnswerError, RefusedError) as error:
            lost[connection.protocol] = _line(error)
    return lost


def _line(error: PipelineError) -> str:
    return " ".join(f"{error.what}: {error.found}".split()) if error.found else error.what


@dataclass
class Ledger:
    """The outcomes of one model's checks.

    Attributes:
        alive: raises a PipelineError when the server's process has ended.
        lost: why a protocol is not asked any more.
        notes: what could not be tried.
    """

    alive: Callable[[], None]
    lost: dict[str, str]
    checks: list[SmokeCheck] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self, model: str, rows: Sequence[Row], progress: Progress) -> SmokeResult:
        """Run every check in order; what could not be tried is noted on the first."""
        for position, (title, protocol, body) in enumerate(rows):
            progress(f"smoke[{model}]: {title} ({protocol})", position / len(rows))
            self.check(title, protocol, body)
        progress(f"smoke[{model}]: done", 1.0)
        first, *rest = self.checks
        noted = replace(first, detail="; ".join([first.detail, *self.notes]))
        return SmokeResult(model=model, checks=(noted, *rest))

    def check(self, title: str, protocol: Protocol, body: Callable[[], str]) -> None:
        """Run one check and keep its outcome; once the server is lost, say so without asking it again."""
        reason = self._lost(protocol)
        if reason:
            self._record(title, protocol, reason)
            return
        try:
            self._record(title, protocol, body(), passed=True)
        except WrongError as error:
            self._record(title, protocol, str(error))
        except shared_memory.ForeignMemoryError as error:
            self.notes.append(f"shared memory not tried: {' '.join(str(error).split())}")
        except RefusedError as error:
            if DEAD_STUB in error.text:
                self._lose(("http", "grpc"), _line(error))
            self._record(title, protocol, _line(error))
        except NoAnswerError as error:
            reason = self._death() or _line(error)
            # A model that is too slow once is so over either protocol; a lost connection may be one port's trouble.
            self._lose(("http", "grpc") if error.timed_out else (protocol,), reason)
            self._record(title, protocol, reason)

    def _record(self, title: str, protocol: Protocol, detail: str, *, passed: bool = False) -> None:
        outcome: Literal["passed", "failed"] = "passed" if passed else "failed"
        self.checks.append(SmokeCheck(name=title, protocol=protocol, outcome=outcome, detail=detail))

    def _lose(self, protocols: Sequence[str], reason: str) -> None:
        self.lost.update(dict.fromkeys(protocols, reason))

    def _lost(self, protocol: Protocol) -> str:
        if death := self._death():
            self._lose(("http", "grpc"), death)
        return self.lost.get(protocol, "")

    def _death(self) -> str:
        try:
            self.alive()
        except PipelineError as error:
            return _line(error)
        return ""


def none_of(differences: Sequence[str]) -> None:
    """Fail a check unless there are no differences; the first few are told.

    Raises:
        WrongError: there are some.
    """
    if differences:
        more = f"; and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise WrongError("; ".join(differences[:5]) + more)
