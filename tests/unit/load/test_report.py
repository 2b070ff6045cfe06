from __future__ import annotations

import io

from rich.console import Console

from pipeline.load import report
from pipeline.load.ledger import Outcome
from pipeline.load.run import Order, Result


def _result(outcomes: list[Outcome], **options: object) -> Result:
    order = Order(model="m[1]", requests=len(outcomes), concurrency=2, rate=None, protocol="grpc", url="h:1")
    given = {"order": order, "given": 3, "distinct": 2, "interrupted": False, "notes": ("watch [out]",), **options}
    return Result(outcomes=tuple(outcomes), duration_s=2.0, **given)


def _outcome(latency_ms: float, error: str = "", *, mismatched: bool = False) -> Outcome:
    return Outcome(due_s=1.0, sent_s=1.0, done_s=1.0 + latency_ms / 1000, error=error, mismatched=mismatched)


def _shown(result: Result) -> str:
    stream = io.StringIO()
    report.show(Console(file=stream, width=120), result)
    return stream.getvalue()


def test_failures_are_in_no_latency() -> None:
    row = report.to_json(
        _result([_outcome(10), _outcome(20), _outcome(0.1, "refused"), _outcome(500, "w", mismatched=True)])
    )
    assert (row["sent"], row["ok"], row["failed"], row["mismatched"]) == (4, 2, 2, 1)
    assert row["throughput_rps"] == 1.0
    assert [round(value, 6) for value in row["latency_ms"].values()] == [10.0, 20.0, 20.0, 20.0]
    assert sum(bucket["count"] for bucket in row["histogram"]) == 2


def test_what_people_see() -> None:
    text = _shown(_result([_outcome(1)] * 9 + [_outcome(100), _outcome(5, "no [such] luck"), _outcome(5, "other")]))
    assert "m[1]  grpc h:1  concurrency 2, 2 different inputs" in text
    assert "OK 10  FAILED 2  of 12 sent, 0 mismatched" in text
    assert "5.0 answers/s in 2.00 s   p50 1 ms   p90 1 ms   p99 100 ms   max 100 ms" in text
    assert "1 × no [such] luck" in text
    assert "note: watch [out]" in text
    bars = [line for line in text.splitlines() if " ms " in line and line.strip().endswith("█")]
    assert [line.count("█") for line in bars] == [40, 5]


def test_nothing_answered_and_nothing_sent() -> None:
    failed = _shown(_result([_outcome(1, f"error {number}") for number in range(12)]))
    assert "OK 0  FAILED 12" in failed
    assert "answers/s" not in failed
    assert "and 2 other errors; --json has them all" in failed
    assert report.exit_code(_result([], interrupted=True)) == 130
    assert "OK 0  FAILED 0  of 0 sent (0 not sent: interrupted)" in _shown(_result([], interrupted=True))
