from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.base.errors import PipelineError, SmokeError
from pipeline.base.values import Measurement, RepositoryEntry, RunningServer, VariantResult
from pipeline.build import prove
from pipeline.build import run as running
from pipeline.plan import Variant
from pipeline.proof import measure
from pipeline.proof.failures import NoAnswerError
from pipeline.servers.triton.client import connection
from pipeline.servers.triton.proof import measured

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
    monkeypatch.setattr(measured, "subject", lambda connection, expected: (connection.url, expected))
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


class Books(Run):
    """Those of a run whose one variant is an engine, in a repository without manifests."""

    def __init__(
        self, root: Path, *, serve: str = "embedded", obstacle: str = "", flavour: str = "tensorrt_rtx"
    ) -> None:
        super().__init__()
        config = self.plan.loaded.config
        config.serve.engine = serve
        engine = SimpleNamespace(obstacle=obstacle, spec=SimpleNamespace(flavour=flavour))
        self.variant: Any = SimpleNamespace(key="trt", identifier="m_trt", engine=engine, server="triton")
        self.plan.variants, self.plan.ensemble, self.plan.repository = (self.variant,), None, root
        self.plan.root = lambda row: root
        entry = RepositoryEntry(root=root, model_name="m_trt", version=1, created=False)
        row = VariantResult(identifier="m_trt", model="m", format="tensorrt", precision="fp16", entry=entry)
        self.results = {"trt": row}
        self.failure: PipelineError | None = None

    judge = running.Run.judge

    @contextlib.contextmanager
    def guarded(self, row: Variant, command: str) -> Iterator[None]:
        try:
            yield
        except PipelineError as failure:
            self.failure = failure


def written(root: Path, data: bytes) -> None:
    (root / "m_trt" / "1").mkdir(parents=True)
    header = b"vtrt" + bytes(12) + (100).to_bytes(8, "little") + bytes(76)
    (root / "m_trt" / "1" / "model_sm80.engine").write_bytes(data or header)


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", ""), (b"vtrt" + bytes(80), "engine (-): model_sm80.engine: its header says 0 bytes; the file has 84")],
)
def test_without_a_manifest_an_engine_that_is_not_served_is_still_looked_at(
    tmp_path: Path, data: bytes, found: str
) -> None:
    written(tmp_path, data)
    run: Any = Books(tmp_path, obstacle="this machine has no GPU")
    prove.prove(run)
    assert run.changes["trt"].get("unmeasured", "this machine has no GPU") == "this machine has no GPU"
    if not found:
        assert run.failure is None
        return
    assert isinstance(run.failure, SmokeError)
    assert run.failure.found == found
    assert (
        run.failure.hint == "build it again; do not publish this version"
    )  # no server ran, so there is no log to read


def test_a_version_without_an_engine_is_found(tmp_path: Path) -> None:
    written(tmp_path, b"")
    (tmp_path / "m_trt" / "1" / "model_sm80.engine").unlink()
    run: Any = Books(tmp_path, obstacle="this machine has no GPU")
    prove.prove(run)
    assert run.failure is not None
    assert run.failure.found == "engine (-): version 1 has no engine"


@pytest.mark.parametrize(
    ("serve", "flavour", "obstacle"),
    [
        ("embedded", "tensorrt_rtx", ""),
        ("container", "tensorrt", ""),
        ("container", "tensorrt_rtx", "no container has a backend for TensorRT-RTX"),
    ],
)
def test_a_container_is_not_asked_for_what_no_container_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, serve: str, flavour: str, obstacle: str
) -> None:
    written(tmp_path, b"")
    served: list[str] = []
    monkeypatch.setattr(prove, "_serve_and_smoke", lambda run, rows: served.extend(row.key for row in rows))
    run: Any = Books(tmp_path, serve=serve, flavour=flavour)
    prove.prove(run)
    assert served == ([] if obstacle else ["trt"])
    assert run.changes == ({"trt": {"unmeasured": obstacle}} if obstacle else {})


def test_each_repository_is_proven_without_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run: Any = Books(tmp_path)
    rows = [SimpleNamespace(**{**vars(run.variant), "key": key, "identifier": f"m_{key}"}) for key in ("a", "trt", "b")]
    run.plan.variants, run.results = tuple(rows), {row.key: run.results["trt"] for row in rows}
    run.plan.root = lambda row: tmp_path / ("rtx" if row.key == "trt" else "main")
    served: list[list[str]] = []
    monkeypatch.setattr(prove, "_serve_and_smoke", lambda run, rows: served.append([row.key for row in rows]))
    prove.prove(run)
    assert served == [["a", "b"], ["trt"]]
