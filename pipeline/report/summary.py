"""From results to report.json and to the table at the end of a build."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.base.values import BuildReport, ParityResult, SmokeResult, VariantResult
from pipeline.report import picks, proof
from pipeline.report.schema import Accuracy, Check, Measurement, Parity, Pick, RunReport, Smoke, VariantReport
from pipeline.report.units import human_bytes, human_figure


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
        parity=_parity(result.parity),
        accuracy=Accuracy(**asdict(result.accuracy)) if result.accuracy else None,
        smoke=_smoke(result.smoke),
        proof=result.proof,
        measurement=Measurement(**asdict(result.measurement)) if result.measurement else None,
        unmeasured_reason=_unmeasured(result),
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


def _unmeasured(result: VariantResult) -> str | None:
    if result.measurement is not None:
        return None
    if result.error or result.skipped or not result.made:
        return "it failed" if result.error else "it was not made"
    return result.unmeasured or ("it was not served" if result.smoke is None else "its speed was not measured")


@dataclass(frozen=True, slots=True)
class _Wide:
    """A table given at least 100 columns, and 200 where no terminal folds its lines: logs are searched for names."""

    table: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = max(options.max_width, 100 if console.is_terminal else 200)
        yield from console.render(self.table, options.update(width=columns))


def table(report: BuildReport) -> RenderableType:
    """What a person reads at the end: one row per variant, what to pick, then notes and failures.

    At most 100 columns wide where names have 18 letters; a longer name is folded.
    """
    rows = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column("", no_wrap=True)
    rows.add_column("variant", overflow="fold")
    rows.add_column("v", justify="right", no_wrap=True)
    rows.add_column("format", no_wrap=True)
    rows.add_column("prec", no_wrap=True)
    for name in ("size", "diff", "accuracy", "p50 ms", "per s"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("proof", no_wrap=True)
    for result in report.variants:
        rows.add_row(*_cells(result))
    parts: list[RenderableType] = [Text(), _Wide(Padding(rows, (0, 0, 0, 2), expand=False))]
    parts += [Text(), *_choice(run_report(report)), Text()]
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
    speed = result.measurement
    p50, rate = (human_figure(speed.p50_ms), human_figure(speed.throughput_per_s)) if speed else ("–", "–")
    shown = proof.word(result.server, result.proof, asked=result.smoke is not None)
    form = (escape(result.format), escape(result.precision))
    return (_outcome(result), escape(result.identifier), version, *form, size, parity, accuracy, p50, rate, shown)


def _choice(record: RunReport) -> list[Text]:
    """A line for each purpose, what could not be compared, and what the figures are worth."""
    lines = [
        Text(f"  for {pick.purpose + ':':<11} {_words(pick)}", style="" if pick.name else "dim")
        for pick in record.picks
    ]
    if not any(row.measurement for row in record.variants):
        return lines
    lines += [
        Text(f"  not compared: {', '.join(names)} ({reason})", style="dim")
        for reason, names in picks.left_out(record.variants).items()
    ]
    return [*lines, Text(f"  {picks.CAVEAT}", style="dim")]


def _words(pick: Pick) -> str:
    return f"{pick.name} ({pick.reason})" if pick.name else pick.reason


def _outcome(result: VariantResult) -> str:
    if result.error:
        return "[red]✗[/red]"
    if result.skipped or not result.made:
        return "[yellow]-[/yellow]"
    return "[cyan]=[/cyan]" if result.cached else "[green]✓[/green]"


def _failure(result: VariantResult) -> list[RenderableType]:
    if not result.error:
        return []
    lines: list[RenderableType] = [Text(), Text(f"error: {result.error}", style="red")]
    if result.reproduce:
        lines.append(Text(f"  again: {result.reproduce}"))
    return lines
