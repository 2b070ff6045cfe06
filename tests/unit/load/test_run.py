"""The workers, with a line that answers here: schedule, accounting, and what ends a load early."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.base.errors import ConfigError, SmokeError
from pipeline.load import report
from pipeline.load.answers import Judge
from pipeline.load.run import Order, Result, _Crew, run
from pipeline.proof.failures import NoAnswerError, RefusedError
from pipeline.servers.triton.client.messages import Reply
from pipeline.servers.triton.client.shared_memory import ForeignMemoryError

ANSWERS = [{"y": np.array([[float(number)]])} for number in range(1, 5)]
Behaviour = Callable[[int, str], Reply]


class Line:
    """Makes senders that all behave in one way, and counts them."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour, self.opened, self.closed, self.sent = behaviour, 0, 0, 0
        self._lock = threading.Lock()

    def __call__(self) -> Line:
        with self._lock:
            self.opened += 1
        return self

    def send(self, question: int, identifier: str) -> Reply:
        with self._lock:
            self.sent += 1
        return self.behaviour(question, identifier)

    def close(self) -> None:
        with self._lock:
            self.closed += 1


def right(question: int, identifier: str) -> Reply:
    return Reply(identifier=identifier, outputs=ANSWERS[question])


def work(
    line: Callable[[], Line],
    *,
    requests: int = 40,
    concurrency: int = 4,
    rate: float | None = None,
    progress: Callable[[str, float | None], None] = lambda text, share: None,
) -> Result:
    order = Order(model="m", requests=requests, concurrency=concurrency, rate=rate, protocol="http", url="u")
    crew = _Crew(order, line, Judge(ANSWERS), len(ANSWERS), "load[m]")
    crew.work(progress)
    return Result(order=order, outcomes=crew.outcomes, duration_s=crew.ended_s - crew.started_s, given=4, distinct=4,
                  interrupted=crew.interrupted, notes=())  # fmt: skip


def test_right_answers_are_counted() -> None:
    line = Line(right)
    result = work(line)
    row = report.to_json(result)
    assert (row["sent"], row["ok"], row["failed"], row["mismatched"], row["errors"]) == (40, 40, 0, 0, [])
    assert (line.opened, line.closed) == (4, 4)
    assert report.exit_code(result) == 0


def test_another_requests_result_and_another_requests_id_are_mismatches() -> None:
    def confused(question: int, identifier: str) -> Reply:
        number = int(identifier.rsplit("-", 1)[1])
        if number == 7:
            return Reply(identifier=identifier, outputs=ANSWERS[(question + 1) % 4])
        return Reply(identifier=identifier + "0" if number == 8 else identifier, outputs=ANSWERS[question])

    result = work(Line(confused))
    row = report.to_json(result)
    assert (row["sent"], row["ok"], row["failed"], row["mismatched"]) == (40, 38, 2, 2)
    assert {error["text"] for error in row["errors"]} == {
        "answered with the result of another request", "answered under the id of another request",
    }  # fmt: skip
    assert result.outcomes[7].mismatched
    assert report.exit_code(result) == 5


def test_failures_are_counted_by_their_text_without_the_requests_ids() -> None:
    def failing(question: int, identifier: str) -> Reply:
        if question == 0:
            raise RefusedError(f"[request id: {identifier}] too  busy", "503")
        if question == 1:
            raise NoAnswerError("no connection", found="reset")
        return right(question, identifier)

    line = Line(failing)
    row = report.to_json(work(line))
    assert (row["ok"], row["failed"], row["mismatched"]) == (20, 20, 0)
    assert {error["text"]: error["count"] for error in row["errors"]} == {"too busy": 10, "no connection: reset": 10}
    assert row["ok"] == sum(bucket["count"] for bucket in row["histogram"])
    assert line.opened == line.closed >= 10  # a sender whose answer did not come is not used again


def test_a_line_that_cannot_be_opened_fails_each_request() -> None:
    def closed() -> Line:
        raise ForeignMemoryError("no room")

    row = report.to_json(work(closed, requests=10))
    assert (row["sent"], row["failed"]) == (10, 10)
    assert row["errors"] == [{"text": "no room", "count": 10}]
    assert row["latency_ms"] == {"p50": None, "p90": None, "p99": None, "max": None}


def test_an_open_loop_sends_at_its_times() -> None:
    result = work(Line(right), requests=20, rate=100.0)
    due = [outcome.due_s - result.outcomes[0].due_s for outcome in result.outcomes]
    assert due == pytest.approx([number / 100 for number in range(20)])
    assert all(outcome.sent_s >= outcome.due_s for outcome in result.outcomes)
    assert 0.19 <= result.duration_s < 0.6


def test_waiting_for_a_server_that_stalls_is_in_the_latencies() -> None:
    stalled = threading.Event()

    def stalls_once(question: int, identifier: str) -> Reply:
        if not stalled.is_set():
            stalled.set()
            time.sleep(0.3)
        return right(question, identifier)

    row = report.to_json(work(Line(stalls_once), requests=20, concurrency=1, rate=100.0))
    assert row["latency_ms"]["p50"] > 100  # a closed loop would see one slow request of twenty
    assert row["sent_late"]["count"] >= 15


def test_an_interrupt_accounts_for_what_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.load.run._GRACE_S", 0.2)
    hanging = threading.Event()

    def hangs(question: int, identifier: str) -> Reply:
        if question == 3:
            hanging.wait(5)
        return right(question, identifier)

    def interrupt(text: str, share: float | None) -> None:
        raise KeyboardInterrupt

    result = work(Line(hangs), requests=100_000, concurrency=2, progress=interrupt)
    hanging.set()
    row = report.to_json(result)
    assert row["interrupted"]
    assert (row["sent"], row["ok"], row["failed"]) == (8, 6, 2)  # 3 and 7 hang, and nobody is left
    assert row["errors"] == [{"text": "interrupted before the answer came", "count": 2}]
    assert report.exit_code(result) == 5


def test_an_interrupt_between_requests_is_no_failure() -> None:
    def interrupt(text: str, share: float | None) -> None:
        raise KeyboardInterrupt

    result = work(Line(right), requests=100, concurrency=2, rate=20.0, progress=interrupt)
    row = report.to_json(result)
    assert 1 <= row["sent"] == row["ok"] < 20
    assert report.exit_code(result) == 130


def test_a_bug_of_ours_is_raised_and_does_not_hang() -> None:
    def buggy(question: int, identifier: str) -> Reply:
        raise AttributeError("oops")

    with pytest.raises(AttributeError, match="oops"):
        work(Line(buggy), requests=1000)


class _Server:
    """A connection to something that answers each question in one way."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, url: str, timeout_s: float) -> _Server:
        self.timeout_s = timeout_s
        return self

    def index(self) -> list[object]:
        if self.error:
            raise self.error
        return []

    def close(self) -> None:
        pass


def _order(**more: float) -> Order:
    return Order(model="m", requests=1, concurrency=1, rate=None, protocol="http", url="http://h:1", **more)


def test_what_is_no_triton_is_told_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.load.run.HttpConnection", _Server(RefusedError("<html>\n" + "x" * 900, "501")))
    with pytest.raises(SmokeError) as caught:
        run(_order(), print)
    assert caught.value.what == (
        "load[m]: what answers at http://h:1 is no Triton, or does not say what it serves (501)"
    )
    assert caught.value.found.startswith("<html> xxx")
    assert len(caught.value.found) < 250
    assert "--url" in caught.value.hint


def test_the_wait_for_an_answer_is_the_order_s(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _Server()
    monkeypatch.setattr("pipeline.load.run.HttpConnection", server)
    for order, expected in ((_order(), 60.0), (_order(timeout_s=300.0), 300.0)):
        with pytest.raises(ConfigError, match="no model m at"):
            run(order, print)
        assert server.timeout_s == expected
