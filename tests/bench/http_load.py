"""A closed loop of HTTP requests over kept connections: one client for servers of any kind.

It parses nothing but the status and Content-Length, so that little of what is measured is its own time.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What is asked, again and again, of a server on 127.0.0.1."""

    port: int
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def request(self) -> bytes:
        """The request's bytes."""
        fields = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(self.body)), **self.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of it: median seconds per request, requests per second, and the last answer's body."""

    p50_s: float
    rate: float
    answer: bytes


def run(target: Target, *, concurrency: int, requests: int) -> Load:
    """Send ``requests`` in all, ``concurrency`` at a time.

    Raises:
        RuntimeError: an answer that is not 200, or a closed connection.
    """
    return asyncio.run(_run(target, concurrency, requests))


async def _run(target: Target, concurrency: int, requests: int) -> Load:
    loop = asyncio.get_running_loop()
    left, seconds = [requests], list[float]()
    connections = []
    for _ in range(concurrency):
        _, connection = await loop.create_connection(
            lambda: _Connection(target, left, seconds), "127.0.0.1", target.port
        )
        connections.append(connection)
    began = time.perf_counter()
    for connection in connections:
        connection.send()
    answers = await asyncio.gather(*(connection.done for connection in connections))
    whole = time.perf_counter() - began
    return Load(p50_s=statistics.median(seconds), rate=len(seconds) / whole, answer=answers[0])


class _Connection(asyncio.Protocol):
    """One request at a time, until none are left."""

    def __init__(self, target: Target, left: list[int], seconds: list[float]) -> None:
        self._request, self._left, self._seconds = target.request, left, seconds
        self._data, self._answer = b"", b""
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self) -> None:
        if not self._left[0]:
            self.done.set_result(self._answer)
            self._transport.close()
            return
        self._left[0] -= 1
        self._data, self._began = b"", time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        self._seconds.append(time.perf_counter() - self._began)
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            self._fail(f"{head.decode(errors='replace')}\n{body[:500].decode(errors='replace')}")
            return
        self._answer = body
        self.send()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"connection closed: {error}")

    def _fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(reason))
            self._transport.close()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    raise RuntimeError(f"no Content-Length: {head!r}")
