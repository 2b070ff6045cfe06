"""The killed worker: which process is killed, and which never is. Everything else runs on the real server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from pipeline.base.values import GoldenSamples, Sample, Signature, TensorSpec, Tolerance
from pipeline.proof.ledger import Ledger
from pipeline.servers.torchserve import api as torchserve_api
from pipeline.servers.torchserve import checks as torchserve
from pipeline.servers.torchserve.api import Registration, Worker
from pipeline.servers.torchserve.checks import TorchServeExpectation, _Suite

SERVER = 4000


class Machine:
    """A server's processes, and what its management API says in turn; the last is said for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processes: set[int], *said: list[Worker]) -> None:
        self.processes, self.said, self.killed = processes, list(said), list[int]()
        self.on_kill = lambda pid: self.processes.discard(pid)
        monkeypatch.setattr(torchserve, "_POLL_S", 0.0)
        monkeypatch.setattr(torchserve, "_below", self.below)
        monkeypatch.setattr(torchserve_api, "describe", self.describe)

    def below(self, pid: int) -> list[Any]:
        assert pid == SERVER
        return [SimpleNamespace(pid=pid, kill=lambda pid=pid: self.kill(pid)) for pid in sorted(self.processes)]

    def kill(self, pid: int) -> None:
        self.killed.append(pid)
        self.on_kill(pid)

    def describe(self, *_: Any, **__: Any) -> Registration:
        workers = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if self.killed:
            self.processes.add(4002)
        return Registration(batch_size=1, max_batch_delay_ms=1, min_workers=1, workers=tuple(workers))


def checked() -> tuple[str, str]:
    """The outcome of the check, and what it says."""
    x = TensorSpec(name="x", dtype="float32", shape=("N",))
    sample = Sample(inputs={"x": np.zeros(1, np.float32)}, outputs={"x": np.zeros(1, np.float32)})
    expectation = TorchServeExpectation(
        model="m",
        signature=Signature(inputs=(x,), outputs=(x,), batch="N"),
        golden=GoldenSamples(samples=(sample,), batched=True, sha256=""),
        batch_size=1,
        max_batch_delay_ms=1,
        workers=1,
        tolerance=Tolerance(max_abs=0, max_rel=0, min_cosine=0.99, min_top1=0.9),
        scores=None,
        alive=lambda: None,
    )
    client: Any = SimpleNamespace(
        predict=lambda body: SimpleNamespace(value=[0.0], batch_size=1), arrays=lambda value: sample.outputs
    )
    suite = _Suite(expectation, client, "http://m", "http://n", SERVER)
    ledger = Ledger(alive=expectation.alive)
    ledger.check("killed worker", "http", suite._killed_worker)
    (check,) = ledger.checks
    return check.outcome, check.detail


def ready(pid: int) -> list[Worker]:
    return [Worker(pid=pid, status="READY")]


def test_a_worker_is_killed_once_it_is_ready_and_another_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    starting = [Worker(pid=-1, status="UNLOADED")]
    machine = Machine(monkeypatch, {4001}, starting, ready(4001), ready(4001), [], starting, ready(4002))
    assert checked()[0] == "passed"
    assert machine.killed == [4001]


@pytest.mark.parametrize("pid", [-1, 0, 1, 5000])
def test_no_process_but_the_server_s_is_killed(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    monkeypatch.setattr(torchserve, "_RECOVERY_S", -1.0)
    machine = Machine(monkeypatch, {4001}, ready(pid))
    outcome, detail = checked()
    assert (outcome, machine.killed) == ("failed", [])
    assert f"pid={pid}" in detail
    assert "the server's own of them: none" in detail


def test_a_worker_that_ended_by_itself_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {4001}, ready(4001), ready(4002))

    def gone(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    machine.on_kill = gone
    assert checked()[0] == "passed"


def test_a_server_that_has_ended_has_no_workers() -> None:
    assert torchserve._below(2**22 + 1) == []  # above the kernel's greatest process id
