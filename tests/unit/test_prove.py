from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import prove
from pipeline.artifacts import Measurement, RunningServer
from pipeline.smoke import connection, measure
from pipeline.smoke.values import NoAnswerError

SERVER = RunningServer(http_url="http://h:1", grpc_url="h:2", metrics_url="", pid=7, log_path=Path("server.log"))


class Run:
    """The part of a run's books that measuring writes in."""

    def __init__(self) -> None:
        serve = SimpleNamespace(request_timeout_s=1.0)
        self.plan = SimpleNamespace(loaded=SimpleNamespace(config=SimpleNamespace(name="m", serve=serve)))
        self.changes: dict[str, dict[str, Any]] = {}
        self.said: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str, log_name: str) -> Iterator[SimpleNamespace]:
        stage = SimpleNamespace(result="", progress=lambda text, share: None)
        yield stage
        self.said.append(f"{name}: {stage.result}")

    def update(self, row: Any, **changes: Any) -> None:
        self.changes[row.key] = changes


def test_what_cannot_be_measured_is_said_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Measurement(p50_ms=1, p99_ms=2, throughput_per_s=900, concurrency=8, batch=1, requests=9)
    lost = NoAnswerError("no connection over gRPC", found="refused")
    monkeypatch.setattr(
        connection, "GrpcConnection", lambda url, timeout_s: SimpleNamespace(url=url, close=lambda: None)
    )
    monkeypatch.setattr(measure, "subject", lambda connection, expected: (connection.url, expected))
    monkeypatch.setattr(
        measure,
        "in_rounds",
        lambda subjects, progress: [figures if one == ("h:2", "of a") else lost for one in subjects],
    )
    monkeypatch.setattr(prove, "_resident_bytes", lambda run, row, pid: 70 if (row.key, pid) == ("a", 7) else None)
    run = Run()
    prove._measure(run, SERVER, [(SimpleNamespace(key=key), f"of {key}") for key in ("a", "b")])
    assert run.changes["a"]["measurement"].memory_bytes == 70
    assert run.changes["a"]["measurement"].p50_ms == 1
    assert run.changes["b"] == {"unmeasured": "no connection over gRPC: refused"}
    assert run.said == ["measure: 1 models, 1 not measured"]


def test_nothing_proven_is_not_measured() -> None:
    run = Run()
    prove._measure(run, SERVER, [])
    assert run.said == []
