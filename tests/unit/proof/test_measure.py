"""How requests are timed and counted; what is slow, refused or over is no more than that."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

import pytest

from pipeline.base.errors import SmokeError
from pipeline.base.values import Measurement
from pipeline.proof import measure
from pipeline.proof.failures import RefusedError
from pipeline.proof.measure import CONCURRENCY, Subject


class Model:
    """Takes ``busy_s`` for an answer, and answers several at once; counts."""

    def __init__(self, busy_s: float) -> None:
        self.busy_s = busy_s
        self.turns: list[int] = []
        self.most = self._now = 0
        self._lock = threading.Lock()

    def ask(self, turn: int) -> None:
        with self._lock:
            self.turns.append(turn)
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(self.busy_s)
        with self._lock:
            self._now -= 1


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_PHASE_S", 0.03)
    monkeypatch.setattr(measure, "_LIMIT_S", 0.1)
    monkeypatch.setattr(measure, "_ENOUGH_S", 0.3)


def quiet(text: str, share: float | None) -> None: ...


def measured(*subjects: Subject, progress: Callable[[str, float | None], None] = quiet) -> list[Measurement]:
    results = measure.in_rounds(subjects, progress)
    assert all(isinstance(result, Measurement) for result in results), results
    return [result for result in results if isinstance(result, Measurement)]


def test_latency_is_of_one_alone_and_throughput_of_many() -> None:
    model = Model(0.01)
    told: list[tuple[str, float | None]] = []
    (figures,) = measured(Subject(ask=model.ask), progress=lambda text, share: told.append((text, share)))
    assert 10 <= figures.p50_ms <= figures.p99_ms
    assert 1.5 * 1000 / figures.p50_ms < figures.throughput_per_s <= 8 / 0.01
    assert (figures.concurrency, figures.batch, figures.memory_bytes) == (8, 1, None)
    assert 2 <= model.most <= 8
    assert figures.requests == len(model.turns) - 3  # those of the warm-up are not timed
    assert [text for text, _ in told] == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_different_samples_are_sent() -> None:
    model = Model(0.001)
    measured(Subject(ask=model.ask))
    assert set(range(16)) <= set(model.turns)


def test_the_best_round_counts() -> None:
    """A neighbour that slows two of three rounds down does not decide."""
    delays = itertools.chain([0.02] * 6, itertools.repeat(0.002))
    (figures,) = measured(Subject(ask=lambda turn: time.sleep(next(delays)), in_flight=1))
    assert figures.p50_ms < 10
    assert figures.throughput_per_s > 100


def test_subjects_take_turns() -> None:
    order: list[str] = []

    def ask(name: str) -> Callable[[int], None]:
        def one(turn: int) -> None:
            time.sleep(0.002)
            order.append(name)

        return one

    measured(Subject(ask=ask("a")), Subject(ask=ask("b")))
    assert [name for name, _ in itertools.groupby(order)] == ["a", "b", "a", "b", "a", "b"]


def test_a_slow_model_gets_fewer_requests_at_once_and_fewer_rounds() -> None:
    model = Model(0.03)
    (figures,) = measured(Subject(ask=model.ask))
    assert figures.concurrency == model.most <= 3 < CONCURRENCY  # sleep is never shorter than asked


class Clock:
    """Stands in for the module time: passes only where it is told to."""

    def __init__(self) -> None:
        self._now_s, self._lock = 0.0, threading.Lock()

    def perf_counter(self) -> float:
        return self._now_s

    def ask(self, turn: int) -> None:
        with self._lock:
            self._now_s += 0.03


def test_as_many_requests_at_once_as_the_longest_phase_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    (figures,) = measured(Subject(ask=clock.ask))
    assert figures.concurrency == 3
    assert figures.p50_ms == pytest.approx(30)


def test_a_very_slow_model_is_asked_a_few_times_one_by_one() -> None:
    model = Model(0.2)
    (figures,) = measured(Subject(ask=model.ask))
    assert len(model.turns) == 2  # one to warm up, one that is timed
    assert (figures.concurrency, figures.requests) == (1, 1)
    assert figures.throughput_per_s == pytest.approx(1000 / figures.p50_ms)


def test_a_refusal_at_once_leaves_the_others_their_figures() -> None:
    seen = itertools.count()

    def refuse(turn: int) -> None:
        if next(seen) > 20:
            raise RefusedError("the queue is full", "UNAVAILABLE")
        time.sleep(0.002)

    refused, figures = measure.in_rounds([Subject(ask=refuse), Subject(ask=Model(0.001).ask)], quiet)
    assert isinstance(refused, SmokeError)
    assert "the queue is full" in str(refused)
    assert isinstance(figures, Measurement)
