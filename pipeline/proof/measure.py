"""How fast served models answer: a second's look at each after the smoke tests, to compare one build's variants by.

The figures are taken beside the build, on whatever machine and under whatever load that runs: they rank siblings, and
say little alone. They are no gate. Every subject is measured a little in each of several rounds, and its best round
counts: what else the machine does for a moment then falls on all subjects alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.base.errors import SmokeError
from pipeline.base.values import Measurement, Progress

CONCURRENCY = 8
"""Requests in flight while throughput is measured: enough to keep a few cores and the batcher busy."""
_SAMPLES = 64  # different golden samples sent in turn
_ROUNDS = 3
_WARM_UP = 3  # requests; the smoke test has sent hundreds, so only this connection is new
_LEAST = 3  # requests timed alone in a round
_PHASE_S = 0.15  # of the two phases of a round: alone, together
_LIMIT_S = 1.0  # longest phase, however few the requests; one in flight then is still waited for
_ENOUGH_S = 3.0  # a subject that has taken this long gets no more rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured.

    Attributes:
        ask: sends a request of one sample and returns when the answer is there; given a number, so that different ones
            can be sent in turn, and called from several threads. Raises SmokeError.
        in_flight: most requests at once.
    """

    ask: Callable[[int], object]
    in_flight: int = CONCURRENCY


def in_rounds(subjects: Sequence[Subject], progress: Progress) -> list[Measurement | SmokeError]:
    """Measure all subjects, one at a time; where one cannot be measured, why, in its figures' place."""
    books = [_Books(item) for item in subjects]
    for turn in range(_ROUNDS):
        for position, book in enumerate(books):
            progress(f"round {turn + 1} of {_ROUNDS}", (turn * len(books) + position) / (_ROUNDS * len(books)))
            book.another_round()
    return [book.result() for book in books]


class _Books:
    """What is known of one subject."""

    def __init__(self, item: Subject) -> None:
        self._subject = item
        self._failure: SmokeError | None = None
        self._spent_s = 0.0
        self._alone: list[list[float]] = []
        self._together: list[tuple[float, int]] = []  # requests per second, how many at once
        self._requests = 0

    def another_round(self) -> None:
        """Measure it once more, unless it has failed or had its time."""
        if self._failure or self._spent_s >= _ENOUGH_S:
            return
        began = time.perf_counter()
        try:
            self._round()
        except SmokeError as error:
            self._failure = error
        self._spent_s += time.perf_counter() - began

    def _round(self) -> None:
        if not self._alone:
            _alone(self._subject.ask, least=_WARM_UP, phase_s=0.0)
        taken_s = _alone(self._subject.ask, least=_LEAST, phase_s=_PHASE_S)
        at_once = min(self._subject.in_flight, max(1, int(_LIMIT_S / np.median(taken_s))))
        rate_per_s, count = 1 / float(np.mean(taken_s)), 0
        if at_once > 1:
            rate_per_s, count = _at_once(self._subject.ask, at_once)
        self._alone.append(taken_s)
        self._together.append((rate_per_s, at_once))
        self._requests += len(taken_s) + count

    def result(self) -> Measurement | SmokeError:
        """The best of its rounds."""
        if self._failure:
            return self._failure
        p50_s, p99_s = min(tuple(np.percentile(taken_s, (50, 99))) for taken_s in self._alone)
        rate_per_s, at_once = max(self._together)
        return Measurement(
            p50_ms=float(p50_s) * 1e3,
            p99_ms=float(p99_s) * 1e3,
            throughput_per_s=rate_per_s,
            concurrency=at_once,
            batch=1,
            requests=self._requests,
        )


def _alone(ask: Callable[[int], object], *, least: int, phase_s: float) -> list[float]:
    """Seconds of each request, one after the other: ``least`` and for ``phase_s``, unless that takes too long."""
    began = before = time.perf_counter()
    taken: list[float] = []
    while before - began < (phase_s if len(taken) >= least else _LIMIT_S):
        ask(len(taken))
        now = time.perf_counter()
        taken.append(now - before)
        before = now
    return taken


def _at_once(ask: Callable[[int], object], count: int) -> tuple[float, int]:
    """Requests per second, and how many there were: each thread sends its next one when it has its answer."""
    began = time.perf_counter()

    def client(first: int) -> int:
        turn = 0
        while not turn or time.perf_counter() - began < _PHASE_S:
            ask(first + turn * count)
            turn += 1
        return turn

    with ThreadPoolExecutor(count) as pool:
        answered = sum(pool.map(client, range(count)))
    return answered / (time.perf_counter() - began), answered
