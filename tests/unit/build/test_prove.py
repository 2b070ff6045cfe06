"""What is proven, with a real run's books and no server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pipeline.base.values import Measurement, RepositoryEntry, RunningServer, VariantResult
from pipeline.build import prove
from pipeline.build.books import Books
from pipeline.build.prove import Serving, Subject
from pipeline.proof import measure
from pipeline.proof.failures import NoAnswerError
from pipeline.report.terminal import Terminal
from pipeline.schema.serving import Serve
from pipeline.servers.triton.client import connection
from pipeline.servers.triton.proof import measured as measuring

SERVER = RunningServer(http_url="http://h:1", grpc_url="h:2", metrics_url="", pid=7, log_path=Path("server.log"))
SERVING = Serving(name="m", release="24.10", serve=Serve(start_timeout_s=1.0, request_timeout_s=1.0))


@dataclass(frozen=True)
class Row:
    key: str

    @property
    def identifier(self) -> str:
        return f"m_{self.key}"


def books(folder: Path, *keys: str) -> Books:
    rows = {key: VariantResult(identifier=f"m_{key}", model="m", format="onnx", precision="fp32") for key in keys}
    return Books(folder, "m.yaml", rows, Terminal(Console(quiet=True)))


def subject(root: Path, key: str, **changes: Any) -> Subject:
    entry = RepositoryEntry(root=root, model_name=f"m_{key}", version=1, created=False)
    nothing: Any = None
    fields: dict[str, Any] = {"row": Row(key), "entry": entry, "members": {}, "config": nothing}
    return Subject(**{**fields, "known": nothing, "golden": nothing, **changes})


def test_what_cannot_be_measured_is_said_and_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = Measurement(p50_ms=1, p99_ms=2, throughput_per_s=900, concurrency=8, batch=1, requests=9)
    lost = NoAnswerError("no connection over gRPC", found="refused")
    monkeypatch.setattr(
        connection, "GrpcConnection", lambda url, timeout_s: SimpleNamespace(url=url, close=lambda: None)
    )
    monkeypatch.setattr(measuring, "subject", lambda connection, expected: (connection.url, expected))
    monkeypatch.setattr(
        measure,
        "in_rounds",
        lambda subjects, progress: [figures if one == ("h:2", "of a") else lost for one in subjects],
    )
    resident = {("m_a", 7): 70}
    monkeypatch.setattr(measuring, "resident_bytes", lambda pid, folder: resident.get((folder.parent.name, pid)))
    run = books(tmp_path, "a", "b")
    proven: Any = [(subject(tmp_path, key), f"of {key}") for key in ("a", "b")]
    prove._measure(run, SERVING, SERVER, proven)
    measured = run.results["a"].measurement
    assert measured is not None
    assert (measured.memory_bytes, measured.p50_ms) == (70, 1)
    assert (run.results["b"].measurement, run.results["b"].unmeasured) == (None, "no connection over gRPC: refused")
    assert "measure" in run.report(None).durations_s


def test_nothing_proven_is_not_measured(tmp_path: Path) -> None:
    run = books(tmp_path, "a")
    prove._measure(run, SERVING, SERVER, [])
    assert run.report(None).durations_s == {}


def written(root: Path, data: bytes) -> None:
    (root / "m_trt" / "1").mkdir(parents=True)
    header = b"vtrt" + bytes(12) + (100).to_bytes(8, "little") + bytes(76)
    (root / "m_trt" / "1" / "model_sm80.engine").write_bytes(data or header)


def proven(root: Path) -> Books:
    run = books(root, "trt")
    engine = subject(root, "trt", flavour="tensorrt_rtx", obstacle="this machine has no GPU")
    prove.prove(run, SERVING, [engine])
    return run


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"", ""), (b"vtrt" + bytes(80), "engine (-): model_sm80.engine: its header says 0 bytes; the file has 84")],
)
def test_without_a_manifest_an_engine_that_is_not_served_is_still_looked_at(
    tmp_path: Path, data: bytes, found: str
) -> None:
    written(tmp_path, data)
    run = proven(tmp_path)
    row = run.results["trt"]
    assert row.unmeasured == "this machine has no GPU"
    assert run.levels == ({} if found else {(tmp_path, "m_trt", 1): "inspected"})
    if not found:
        assert not row.error
        return
    assert row.exit_code == 5
    assert found in row.error
    assert "try:   build it again\n" in row.error  # no server ran, so there is no log to read


def test_a_version_without_an_engine_is_found(tmp_path: Path) -> None:
    written(tmp_path, b"")
    (tmp_path / "m_trt" / "1" / "model_sm80.engine").unlink()
    assert "engine (-): version 1 has no engine" in proven(tmp_path).results["trt"].error


def test_each_root_is_served_by_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(
        prove,
        "_serve_and_smoke",
        lambda books, serving, root, subjects: served.append((root.name, [one.row.key for one in subjects])),
    )
    subjects = [subject(tmp_path / root, key) for root, key in (("one", "a"), ("two", "b"), ("one", "c"))]
    prove.prove(books(tmp_path, "a", "b", "c"), SERVING, subjects)
    assert served == [("one", ["a", "c"]), ("two", ["b"])]
