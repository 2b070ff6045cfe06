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
    points = []
    for row in record.variants:
        if row.measurement:
            p50_ms, per_s = row.measurement.p50_ms, row.measurement.throughput_per_s
            points.append(_point(record, row, p50_ms, per_s, f"{human_ms(p50_ms)}, {human_rate(per_s)}"))
    x = Axis(name="p50 latency of one request alone, ms (left is better)", text="{:,.6g}".format)
    y = Axis(name="samples per second (up is better)", text="{:,.6g}".format)
    return charts.scatter("Latency against throughput", points, x, y) if points else None


def _accuracy(record: RunReport) -> Chart | None:
    """Accuracy against size, of what has both."""
    points, metric = [], ""
    for row in record.variants:
        if row.accuracy and row.size_bytes is not None:
            words = f"{human_bytes(row.size_bytes)}, {row.accuracy.value:.2%}"
            points.append(_point(record, row, row.size_bytes, row.accuracy.value, words))
            metric = metric or row.accuracy.metric
    x = Axis(name="size on disk (left is better)", text=lambda value: human_bytes(round(value)).replace(".0 ", " "))
    y = Axis(
        name=f"accuracy, {metric} (up is better)",
        text=lambda value: f"{round(value * 100, 6):g}%",
        from_zero=False,
        top=1.0,
    )
    return charts.scatter("Accuracy against size", points, x, y) if points else None


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
