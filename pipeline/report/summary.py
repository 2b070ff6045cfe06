"""From results to report.json and to the table at the end of a build."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.artifacts import BuildReport, ParityResult, SmokeResult, VariantResult
from pipeline.report.schema import Accuracy, Check, Parity, RunReport, Smoke, VariantReport


def run_report(report: BuildReport) -> RunReport:
    """The JSON side of a build."""
    return RunReport(
        run_id=report.run_id,
        config=report.config,
        environment=dict(report.environment),
        durations_s={step: round(seconds, 3) for step, seconds in report.durations_s.items()},
        exit_code=report.exit_code,
        error=report.error or None,
        server_log=str(report.server_log) if report.server_log else None,
        variants=[_variant(result) for result in report.variants],
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
        parity=_parity(result.parity),
        accuracy=Accuracy(**asdict(result.accuracy)) if result.accuracy else None,
        smoke=_smoke(result.smoke),
        notes=list(result.notes),
        skipped_reason=result.skipped or None,
        error=result.error or None,
    )


def _parity(parity: ParityResult | None) -> Parity | None:
    if parity is None:
        return None
    return Parity(**{**asdict(parity), "batch_sizes": list(parity.batch_sizes)})


def _smoke(smoke: SmokeResult | None) -> Smoke:
    if smoke is None:
        return Smoke(outcome="not run", checks=[])
    return Smoke(
        outcome="passed" if smoke.passed else "failed", checks=[Check(**asdict(check)) for check in smoke.checks]
    )


def table(report: BuildReport) -> RenderableType:
    """What a person reads at the end: one row per variant, then notes, failures and where things are."""
    rows = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 1))
    rows.add_column("variant", overflow="fold")
    for name in ("version", "size", "max diff", "accuracy", "served"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    for result in report.variants:
        rows.add_row(*_cells(result))
    parts: list[RenderableType] = [Text(), Padding(rows, (0, 0, 0, 2))]
    parts += [
        Text(f"  note: {result.identifier}: {note}", style="dim") for result in report.variants for note in result.notes
    ]
    parts += [
        Text(f"  skipped: {result.identifier}: {result.skipped}", style="yellow")
        for result in report.variants
        if result.skipped
    ]
    for result in report.variants:
        parts += _failure(result)
    if report.error:
        parts += [Text(), Text(f"error: {report.error}", style="red")]
    return Group(*parts)


def _cells(result: VariantResult) -> tuple[str, ...]:
    version = "–" if result.entry is None else str(result.entry.version)
    size = "–" if result.artifact is None else human_bytes(result.artifact.size_bytes)
    parity = "–" if result.parity is None else f"{result.parity.max_abs:.1e}"
    accuracy = "–" if result.accuracy is None else f"{result.accuracy.value:.2%}"
    served = "not run" if result.smoke is None else _passed(result.smoke)
    return (escape(result.identifier), version, size, parity, accuracy, served, _outcome(result))


def _outcome(result: VariantResult) -> str:
    if result.error:
        return "[red]failed[/red]"
    if result.skipped:
        return "[yellow]skipped[/yellow]"
    return "[cyan]unchanged[/cyan]" if result.cached else "[green]ok[/green]"


def _passed(smoke: SmokeResult) -> str:
    good = sum(check.outcome == "passed" for check in smoke.checks)
    return f"{good}/{len(smoke.checks)} ok"


def _failure(result: VariantResult) -> list[RenderableType]:
    if not result.error:
        return []
    lines: list[RenderableType] = [Text(), Text(f"error: {result.error}", style="red")]
    if result.reproduce:
        lines.append(Text(f"  again: {result.reproduce}"))
    return lines


def human_bytes(count: int) -> str:
    """Bytes for a person: ``45.0 MB`` (decimal units)."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
