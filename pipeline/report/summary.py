"""From results to report.json and to the table at the end of a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pipeline.base.values import SmokeResult, VariantResult
from pipeline.report import picks, proof
from pipeline.report.fitting import Column, Fitting, Words
from pipeline.report.schema import RunReport, Smoke, VariantReport
from pipeline.report.units import human_bytes, human_figure


@dataclass(frozen=True, kw_only=True)  # without slots, so that its record is kept
class BuildReport:
    """What became of one configuration.

    Attributes:
        durations_s: seconds per step, the plan's first; several may have run at a time.
        elapsed_s: seconds from the plan to the report.
        error: the error form of what ended the run before its variants, or empty.
        server_log: path of the server's log, or None when none was started.
        run_dir: folder with the logs and report.json of this run.
    """

    run_id: str
    config: str
    environment: Mapping[str, Any]
    durations_s: Mapping[str, float]
    exit_code: int
    variants: tuple[VariantResult, ...]
    run_dir: Path
    error: str = ""
    server_log: Path | None = None
    elapsed_s: float = 0.0

    @cached_property
    def record(self) -> RunReport:
        """Its JSON side."""
        return run_report(self)


def run_report(report: BuildReport) -> RunReport:
    """The JSON side of a build."""
    variants = [_variant(result) for result in report.variants]
    return RunReport(
        run_id=report.run_id,
        config=report.config,
        environment=dict(report.environment),
        durations_s={step: round(seconds, 3) for step, seconds in report.durations_s.items()},
        exit_code=report.exit_code,
        error=report.error or None,
        server_log=str(report.server_log) if report.server_log else None,
        variants=variants,
        picks=picks.choose(variants),
    )


def _variant(result: VariantResult) -> VariantReport:
    entry, artifact = result.entry, result.artifact
    return VariantReport(
        name=result.identifier,
        format=result.format,
        precision=result.precision,
        model=result.model,
        server=result.server,
        version=entry.version if entry else None,
        path=str(entry.version_dir) if entry else None,
        sha256=artifact.sha256 if artifact else None,
        size_bytes=artifact.size_bytes if artifact else None,
        cached=result.cached,
        parity=result.parity,
        accuracy=result.accuracy,
        smoke=_smoke(result.smoke),
        proof=result.proof,
        measurement=result.measurement,
        unmeasured_reason=_unmeasured(result),
        notes=list(result.notes),
        skipped_reason=result.skipped or None,
        error=result.error or None,
    )


def _smoke(smoke: SmokeResult | None) -> Smoke:
    if smoke is None:
        return Smoke(outcome="not run", checks=[])
    return Smoke(outcome="passed" if smoke.passed else "failed", checks=list(smoke.checks))


def _unmeasured(result: VariantResult) -> str | None:
    if result.measurement is not None:
        return None
    if result.error or result.skipped or not result.made:
        return "it failed" if result.error else "it was not made"
    return result.unmeasured or ("it was not served" if result.smoke is None else "its speed was not measured")


_COLUMNS = (
    Column(name=""),
    Column(name="variant"),
    Column(name="v", right=True),
    Column(name="format", leaves=2),
    Column(name="prec", leaves=3),
    Column(name="size", right=True, leaves=5),
    Column(name="diff", right=True, leaves=1),
    Column(name="accuracy", right=True),
    Column(name="p50 ms", right=True),
    Column(name="per s", right=True, leaves=4),
    Column(name="proof"),
)
"""First to leave a narrow terminal: what the stages' lines told already, and what most names tell."""


def table(report: BuildReport) -> RenderableType:
    """What a person reads at the end: one row per variant, what to pick, then notes and failures."""
    rows = Fitting(columns=_COLUMNS, rows=[_cells(result) for result in report.variants], folds="variant")
    parts: list[RenderableType] = [Text(), rows, Text(), *_choice(report.record), Text()]
    told = [(row.identifier, note) for row in report.variants for note in row.notes]
    skipped = [(row.identifier, row.skipped) for row in report.variants if row.skipped]
    parts += [Words(Text(f"  note: {name}: {note}", style="dim")) for name, note in told]
    parts += [Words(Text(f"  skipped: {name}: {reason}", style="yellow")) for name, reason in skipped]
    for result in report.variants:
        if result.error:
            parts += [Text(), Text(f"error: {result.error}", style="red")]
        if result.error and result.reproduce:
            parts.append(Text(f"  again: {result.reproduce}"))
    if report.error:
        parts += [Text(), Text(f"error: {report.error}", style="red")]
    return Group(*parts)


def _cells(result: VariantResult) -> tuple[Text, ...]:
    version = "–" if result.entry is None else str(result.entry.version)
    size = "–" if result.artifact is None else human_bytes(result.artifact.size_bytes)
    parity = "–" if result.parity is None else f"{result.parity.max_abs:.1e}"
    accuracy = "–" if result.accuracy is None else f"{result.accuracy.value:.2%}"
    speed = result.measurement
    p50, rate = (human_figure(speed.p50_ms), human_figure(speed.throughput_per_s)) if speed else ("–", "–")
    shown = proof.word(result.server, result.proof, asked=result.smoke is not None)
    made = (result.identifier, version, result.format, result.precision)
    return (_outcome(result), *map(Text, (*made, size, parity, accuracy, p50, rate, shown)))


def _choice(record: RunReport) -> list[Words]:
    """A line for each purpose, what could not be compared, and what the figures are worth."""
    lines = []
    for pick in record.picks:
        words = f"{pick.name} ({pick.reason})" if pick.name else pick.reason
        lines.append(
            Words(Text(f"  for {pick.purpose + ':':<11} {words}", style="" if pick.name else "dim"), indent=18)
        )
    if any(row.measurement for row in record.variants):
        left = [f"not compared: {', '.join(names)} ({why})" for why, names in picks.left_out(record.variants).items()]
        lines += [Words(Text(f"  {text}", style="dim")) for text in (*left, picks.CAVEAT)]
    return lines


def _outcome(result: VariantResult) -> Text:
    if result.error:
        return Text("✗", style="red")
    if result.skipped or not result.made:
        return Text("-", style="yellow")
    return Text("=", style="cyan") if result.cached else Text("✓", style="green")
