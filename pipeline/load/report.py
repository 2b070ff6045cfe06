"""What a load is said to have shown: as JSON values, and for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipeline.load.run import Result
from pipeline.load.statistics import histogram, percentile
from pipeline.report.fitting import Words

_BAR_WIDTH = 40
_SHOWN_ERRORS = 10
_LATE_S = 0.01  # a request sent later than this was not sent at its time


def exit_code(result: Result) -> int:
    """5 when a request failed or was answered wrongly, 130 when a person ended the load, else 0."""
    if any(outcome.error for outcome in result.outcomes):
        return 5
    return 130 if result.interrupted else 0


def to_json(result: Result) -> dict[str, Any]:
    """The whole result; latencies are those of right answers, since a quick refusal is no quick answer."""
    order, outcomes = result.order, result.outcomes
    right = [outcome.latency_s * 1000 for outcome in outcomes if not outcome.error]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    late = [outcome.sent_s - outcome.due_s for outcome in outcomes]
    return {
        "model": order.model,
        "protocol": order.protocol,
        "url": order.url,
        "requests": order.requests,
        "concurrency": order.concurrency,
        "rate_rps": order.rate,
        "interrupted": result.interrupted,
        "inputs": {"given": result.given, "distinct": result.distinct},
        "sent": len(outcomes),
        "ok": len(right),
        "failed": len(outcomes) - len(right),
        "mismatched": sum(outcome.mismatched for outcome in outcomes),
        "errors": [{"text": text, "count": count} for text, count in errors.most_common()],
        "duration_s": result.duration_s,
        "throughput_rps": len(right) / result.duration_s if result.duration_s else 0.0,
        "latency_ms": {
            **{f"p{share}": percentile(right, share) if right else None for share in (50, 90, 99)},
            "max": max(right, default=None),
        },
        "histogram": [asdict(bucket) for bucket in histogram(right)],
        "sent_late": {"count": sum(delay > _LATE_S for delay in late), "max_ms": max(late, default=0.0) * 1000},
        "notes": list(result.notes),
    }


def show(console: Console, result: Result) -> None:
    """Counts, latencies, the histogram, the distinct errors, and what to know about them."""
    row = to_json(result)
    loop = f"{row['rate_rps']:g} requests/s" if row["rate_rps"] else f"concurrency {row['concurrency']}"
    asked = f"{row['protocol']} {escape(row['url'])}  {loop}, {row['inputs']['distinct']} different inputs"
    _line(console, f"[bold]{escape(row['model'])}[/bold]  {asked}")
    colour = "red" if row["failed"] else "green"
    unsent = f" ({row['requests'] - row['sent']} not sent: interrupted)" if row["interrupted"] else ""
    counts = f"[{colour}]OK {row['ok']}  FAILED {row['failed']}[/{colour}]  of {row['sent']} sent{unsent}"
    _line(console, f"  {counts}, {row['mismatched']} mismatched")
    if row["ok"]:
        latencies = "   ".join(f"{name} {_ms(value)} ms" for name, value in row["latency_ms"].items())
        _line(console, f"  {row['throughput_rps']:.1f} answers/s in {row['duration_s']:.2f} s   {latencies}")
        _bars(console, row["histogram"])
    for error in row["errors"][:_SHOWN_ERRORS]:
        _line(console, f"  [red]{error['count']} ×[/red] {escape(error['text'])}")
    if len(row["errors"]) > _SHOWN_ERRORS:
        _line(console, f"  and {len(row['errors']) - _SHOWN_ERRORS} other errors; --json has them all")
    late = row["sent_late"]
    if row["rate_rps"] and late["count"]:
        _line(
            console,
            f"  [yellow]note:[/yellow] {late['count']} requests were sent late, up to {_ms(late['max_ms'])} ms: no "
            "worker was free, or this machine is busy. Latencies include it; more --concurrency shows which",
        )
    for note in row["notes"]:
        _line(console, f"  [yellow]note:[/yellow] {escape(note)}")


def _bars(console: Console, buckets: list[dict[str, Any]]) -> None:
    greatest = max(bucket["count"] for bucket in buckets)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for column in ("right", "right", "left"):
        table.add_column(justify=column, no_wrap=True)
    for bucket in buckets:
        width = -(-bucket["count"] * _BAR_WIDTH // greatest)  # one at least, where there is one
        table.add_row(f" {_ms(bucket['from_ms'])} - {_ms(bucket['to_ms'])} ms", str(bucket["count"]), "█" * width)
    console.print(table, highlight=False)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _line(console: Console, text: str) -> None:
    console.print(Words(Text.from_markup(text)), soft_wrap=True)
