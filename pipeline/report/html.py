"""report.json as a page for people: one file, no scripts, nothing loaded from elsewhere.

Written from the report's record alone, so that what is masked there is masked here, and the same report gives the same
page.
"""

from __future__ import annotations

import jinja2

from pipeline.report import charts, picks, proof
from pipeline.report.charts import Axis, Chart, Point
from pipeline.report.schema import RunReport, VariantReport
from pipeline.report.units import human_bytes, human_figure, human_ms, human_rate


def page(record: RunReport) -> str:
    """The whole page; every text of the report is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": human_bytes, "figure": human_figure}
    template = environment.get_template("report.html.jinja")
    return template.render(
        report=record,
        title=record.variants[0].model if record.variants else record.config,
        speed=_speed(record),
        accuracy=_accuracy(record),
        groups=sorted({_group(row) for row in record.variants}),
        geometry=charts,
        left_out=picks.left_out(record.variants),
        caveat=picks.CAVEAT,
        outcome=_outcome,
        proof=proof.word,
        longest_s=max(record.durations_s.values(), default=0.0) or 1.0,
        environment=[(name, _in_words(value)) for name, value in record.environment.items()],
    )


def _outcome(row: VariantReport) -> str:
    if row.error or row.skipped_reason:
        return "failed" if row.error else "skipped"
    if row.version is None and row.sha256 is None:  # the run did not come to it
        return "not made"
    return "unchanged" if row.cached else "ok"


def _in_words(value: object) -> str:
    """A value of the environment, which may hold mappings and lists, on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_in_words(each) for each in value)
    return "none" if value is None else str(value)


def _speed(record: RunReport) -> Chart | None:
    """Latency against throughput, of what was measured."""
    points = [
        _point(record, row, row.measurement.p50_ms, row.measurement.throughput_per_s, _speed_words(row))
        for row in record.variants
        if row.measurement
    ]
    if not points:
        return None
    return charts.scatter(
        "Latency against throughput",
        points,
        Axis(name="p50 latency of one request alone, ms (left is better)", text=_plain),
        Axis(name="samples per second (up is better)", text=_plain),
    )


def _speed_words(row: VariantReport) -> str:
    assert row.measurement
    return f"{human_ms(row.measurement.p50_ms)}, {human_rate(row.measurement.throughput_per_s)}"


def _accuracy(record: RunReport) -> Chart | None:
    """Accuracy against size, of what has both."""
    points = [
        _point(
            record, row, row.size_bytes, row.accuracy.value, f"{human_bytes(row.size_bytes)}, {row.accuracy.value:.2%}"
        )
        for row in record.variants
        if row.accuracy and row.size_bytes is not None
    ]
    if not points:
        return None
    return charts.scatter(
        "Accuracy against size",
        points,
        Axis(name="size on disk (left is better)", text=lambda value: human_bytes(round(value)).replace(".0 ", " ")),
        Axis(
            name=f"accuracy, {next(row.accuracy.metric for row in record.variants if row.accuracy)} (up is better)",
            text=lambda value: f"{round(value * 100, 6):g}%",
            from_zero=False,
            top=1.0,
        ),
    )


def _plain(value: float) -> str:
    return f"{value:,.6g}"


def _point(record: RunReport, row: VariantReport, x: float, y: float, words: str) -> Point:
    return Point(
        label=row.name.removeprefix(f"{row.model}_"),  # all variants share that; a deployment keeps its whole name
        title=f"{row.name}: {words}",
        group=_group(row),
        x=x,
        y=y,
        picked=any(pick.name == row.name for pick in record.picks),
    )


def _group(row: VariantReport) -> str:
    """The precision, by which dots are coloured."""
    return row.precision if row.precision in ("fp32", "fp16", "bf16", "int8") else "other"
