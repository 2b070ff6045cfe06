"""The account of a load: each request that was sent has exactly one outcome, whatever happens in between."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request; times are seconds of one monotonic clock.

    Attributes:
        due_s: when it should have been sent: its place in the schedule of an open loop, else when it was sent.
        done_s: when its answer was there, or it was given up.
        error: why it failed; empty when its answer was right.
        mismatched: it was answered, but not with its own answer.
    """

    due_s: float
    sent_s: float
    done_s: float
    error: str = ""
    mismatched: bool = False

    @property
    def latency_s(self) -> float:
        """From when it was due, so that waiting for a late sender counts."""
        return self.done_s - self.due_s


class Ledger:
    """Gives out so many numbers of requests, from 0, and takes their outcomes; for use by many threads."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self._lock = threading.Lock()
        self._next = 0
        self._open: dict[int, partial[Outcome]] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._closed = False

    def take(self) -> int | None:
        """The next number; None when there is none, or the ledger is closed."""
        with self._lock:
            if self._closed or self._next == self.requests:
                return None
            self._next += 1
            return self._next - 1

    def sending(self, number: int, *, due_s: float, sent_s: float) -> bool:
        """Note that a request is sent now; False when the ledger is closed, and it must not be."""
        with self._lock:
            if not self._closed:
                self._open[number] = partial(Outcome, due_s=due_s, sent_s=sent_s)
            return not self._closed

    def settle(self, number: int, *, done_s: float, error: str = "", mismatched: bool = False) -> None:
        """Note what became of a request that was sent; what comes after closing is not counted any more."""
        with self._lock:
            if number in self._open:
                settled = self._open.pop(number)
                self._outcomes[number] = settled(done_s=done_s, error=error, mismatched=mismatched)

    def close(self, reason: str, now_s: float) -> tuple[Outcome, ...]:
        """Give out no more numbers, fail what is still unanswered, and return all outcomes in the order of numbers."""
        with self._lock:
            self._closed = True
            self._outcomes |= {number: settled(done_s=now_s, error=reason) for number, settled in self._open.items()}
            self._open.clear()
            return tuple(self._outcomes[number] for number in sorted(self._outcomes))

    def counts(self) -> tuple[int, int]:
        """How many requests have an outcome so far, and how many of these failed."""
        with self._lock:
            outcomes = list(self._outcomes.values())
        return len(outcomes), sum(bool(item.error) for item in outcomes)
