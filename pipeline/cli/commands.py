"""What each command does around the stages: loading, printing, exit codes."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from pipeline.base import files, network
from pipeline.base.errors import ConfigError, Problem
from pipeline.base.printing import printable
from pipeline.base.store import Store
from pipeline.base.values import RunningServer
from pipeline.build import loop as building
from pipeline.build import publication
from pipeline.build.loop import Options
from pipeline.config import load as loading
from pipeline.config.load import LoadedConfig
from pipeline.formats.tensorrt.spec import to_json as engine_json
from pipeline.machine import doctor as diagnosis
from pipeline.machine import environment
from pipeline.plan import BuildPlan
from pipeline.report import output
from pipeline.report.fitting import Words
from pipeline.report.summary import BuildReport, table
from pipeline.report.terminal import Terminal
from pipeline.report.units import human_bytes
from pipeline.servers import table as servers

_NAME_WIDTH = 40  # of a plan's variants: longer ones may be folded in a narrow terminal


def _load_all(paths: Sequence[Path], overrides: Sequence[str]) -> list[LoadedConfig]:
    """Load every configuration before anything is built; the problems of all files come together."""
    loaded: list[LoadedConfig] = []
    problems: list[Problem] = []
    for path in loading.expand(paths):
        try:
            loaded.append(loading.load(path, overrides))
        except ConfigError as error:
            problems += error.problems or [Problem(where=str(path), key="", message=str(error))]
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise ConfigError(f"config: {count}, nothing was built", problems=problems)
    owners: dict[str, Path] = {}
    for item in loaded:
        for name in servers.names(item.config):
            if name in owners:
                found = f"{owners[name]}, {item.path}"
                hint = "models are called `<name>_<variant>`, an ensemble `<name>`; change `name` in one of them"
                raise ConfigError(f"config: two configurations make a model called {name}", found=found, hint=hint)
            owners[name] = item.path
    return loaded


def build(paths: Sequence[Path], overrides: Sequence[str], options: Options, report: Path | None) -> int:
    """Build every configuration; print a table for each; return the exit code of the run."""
    output.check(report)
    terminal = Terminal(Console())
    reports = []
    for loaded in _load_all(paths, overrides):
        terminal.line(f"[bold]{escape(loaded.config.name)}[/bold]  {escape(str(loaded.path))}")
        with interruptible():
            reports.append(building.build(loaded, options, terminal))
        _print_report(terminal, reports[-1])
    output.write(report, reports)
    return max(item.exit_code for item in reports)


def smoke(
    path: Path, overrides: Sequence[str], options: Options, url: str | None, grpc_url: str | None, report: Path | None
) -> int:
    """Smoke-test a repository or a running server by a YAML; return the exit code."""
    output.check(report)
    (loaded,) = _load_all([path], overrides)
    return _smoked(partial(building.smoke, loaded, options), url, grpc_url, report)


def smoke_repository(
    root: Path, models: Sequence[str], work_dir: Path, url: str | None, grpc_url: str | None, report: Path | None
) -> int:
    """Smoke-test a repository by its own records, here or on a running server; return the exit code."""
    output.check(report)
    return _smoked(partial(building.smoke_repository, root, models, work_dir.absolute()), url, grpc_url, report)


def _smoked(ask: Callable[..., BuildReport], url: str | None, grpc_url: str | None, report: Path | None) -> int:
    terminal, remote = Terminal(Console()), None if url is None else server_at(url, grpc_url)
    with interruptible():
        done = ask(terminal, remote)
    _print_report(terminal, done)
    output.write(report, [done])
    return done.exit_code


def server_at(url: str, grpc_url: str | None) -> RunningServer:
    """A server that somebody else runs.

    Raises:
        ConfigError: what was given is no address.
    """
    http = network.http_url(url)
    grpc = f"{network.host_of(http)}:8001" if grpc_url is None else network.grpc_url(grpc_url)
    return RunningServer(http_url=http, grpc_url=grpc, metrics_url="", pid=0, log_path=Path())


def _print_report(terminal: Terminal, done: BuildReport) -> None:
    terminal.console.print(table(done), soft_wrap=True)
    verdict = "[green]passed[/green]" if done.exit_code == 0 else f"[red]failed, exit {done.exit_code}[/red]"
    terminal.line(f"\n  {verdict} in {done.elapsed_s:.1f} s · logs {escape(_shown(done.run_dir))}")
    if (done.run_dir / "report.html").is_file():
        terminal.line(f"  report {escape(_shown(done.run_dir / 'report.html'))}")
    terminal.line("")


def _say(console: Console, text: str) -> None:
    """A line as it is: a terminal breaks it where it must, and nothing in it is coloured as a number or a path."""
    console.print(text, highlight=False, soft_wrap=True)


def _shown(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that servers are stopped and staging folders removed."""

    def _raise(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def plan(paths: Sequence[Path], overrides: Sequence[str], options: Options, *, as_json: bool) -> None:
    """Print the plan of every configuration."""
    plans = [building.make_plan(loaded, options) for loaded in _load_all(paths, overrides)]
    rows = [describe_plan(item) for item in plans]
    if as_json:
        Console(soft_wrap=True).print_json(json.dumps(rows[0] if len(rows) == 1 else rows))
        return
    console = Console()
    for item, row in zip(plans, rows, strict=True):
        _print_plan(console, item, row)


def describe_plan(item: BuildPlan) -> dict[str, Any]:
    """A plan as JSON values: options, variants, steps with their keys and whether they are cached, what is missing."""
    store, config = Store(item.work_dir / "store"), item.loaded.config
    description = {
        "name": config.name,
        "config": str(item.loaded.path),
        "options": config.model_dump(mode="json", by_alias=True, exclude_none=True),
        "target": {key: value for key, value in asdict(item.limits).items() if key != "triton"},
        "repository": str(item.repository),
        "variants": [
            {
                "name": variant.identifier,
                "format": variant.format,
                "precision": variant.precision,
                "made_by": f"{config.name}_{variant.parent}",
                "how": variant.how,
                "max_batch_size": variant.max_batch_size,
                **variant.options,
                **({"engine": engine_json(variant.engine.spec)} if variant.engine else {}),
                "triton": dict(variant.fields),
            }
            for variant in item.variants
        ],
        "steps": [{"step": step.name, "key": step.key, "cached": store.holds(step)} for step in item.steps],
        "deployments": [
            {"name": row.identifier, **{key: getattr(row, key) for key in ("format", "precision", "server", "how")}}
            for row in item.deployments
        ],
        "missing": [
            *item.missing_to_build,
            *item.missing_to_serve,
            *item.missing_for_engines,
            *item.missing_for_deployments,
        ],
    }
    masked: dict[str, Any] = json.loads(item.loaded.masked(json.dumps(description)))
    return masked


def _print_plan(console: Console, item: BuildPlan, row: dict[str, Any]) -> None:
    target = row["target"]
    title = f"[bold]{escape(row['name'])}[/bold]  {escape(row['config'])}  →  {escape(row['repository'])}"
    console.print(title, soft_wrap=True)
    told = (
        f"  target {target['release']}: ONNX Runtime {target['onnxruntime']}, opset ≤ {target['max_opset']}, "
        f"IR ≤ {target['max_ir_version']}, Python {target['python'] or 'unknown'}, "
        f"TensorRT {target['tensorrt'] or 'unknown'}\n"
    )
    console.print(told, highlight=False)
    fixed = (Column("format", no_wrap=True), Column("prec", no_wrap=True), Column("max batch", justify="right"))
    longest = max(len(made.identifier) for made in item.rows)
    names = Column("variant", overflow="fold", no_wrap=longest <= _NAME_WIDTH)
    variants = Table(names, *fixed, "how", box=None, header_style="bold", padding=(0, 0, 0, 2))
    for made in item.rows:
        variants.add_row(made.identifier, made.format, made.precision, str(made.max_batch_size), escape(made.how))
    console.print(variants)
    steps = Table("step", "", "key", box=None, header_style="bold", padding=(0, 2))
    for step in row["steps"]:
        steps.add_row(escape(step["step"]), "[cyan]cached[/cyan]" if step["cached"] else "to do", step["key"][:12])
    console.print(steps)
    for gap in row["missing"]:
        console.print(f"  [yellow]missing:[/yellow] {escape(gap)}", soft_wrap=True)
    console.print("\n  [bold]options[/bold]")
    for key, value in _flat(row["options"]):
        _say(console, f"  {escape(key)} = {escape(json.dumps(value))}")
    console.print()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def predict(name: str, file: Path, url: str, top: int, *, as_json: bool) -> None:
    """Print labels and probabilities, or the raw outputs of a model that does not classify."""
    from pipeline.servers.triton.client import prediction

    rows = prediction.predict(network.http_url(url), name, file, top=top)
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['probability']:8.4f}  {row['label']}" if "label" in row else json.dumps(row))


def metadata(folder: Path) -> None:
    """Print what TF-Serving tells of a model's newest version, or of a SavedModel that is in no tree.

    Raises:
        MissingError: TensorFlow is not installed.
        StageError: not a SavedModel that can be served.
    """
    from pipeline.repository import versions
    from pipeline.servers.tfserving import checks

    numbers = versions.version_numbers(folder)
    version = numbers[-1] if numbers else 1
    place = folder / str(version) if numbers else folder
    print(json.dumps(checks.metadata(place, folder.absolute().name, version), indent=1))


def lint(repository: Path, target: str, *, as_json: bool) -> int:
    """Print the findings; 4 when one of them is an error."""
    from pipeline.lint import lint as check

    findings = check(repository, target=target)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        told = {"repository": str(repository), "target": target, "findings": [asdict(item) for item in findings]}
        print(json.dumps(told))
        return 4 if errors else 0
    console = Console()
    for item in findings:
        colour = "red" if item.severity == "error" else "yellow"
        _say(console, f"[{colour}]{item.severity}[/{colour}] {escape(item.path)} [dim]{item.rule}[/dim]")
        for text in (item.reason, f"fix: {item.fix}"):
            console.print(Words(Text(f"  {text}")), soft_wrap=True)
    counts = f"{errors} errors, {len(findings) - errors} warnings"
    console.print(f"{counts} in {escape(str(repository))} (target {target})", highlight=False)
    return 4 if errors else 0


def import_mar(
    path: Path, out: Path | None, inputs: Sequence[str], outputs: Sequence[str], samples: Path | None
) -> None:
    """Import an archive; print line by line what was carried, and the next command.

    Raises:
        ConfigError: refused; or the YAML was written and needs more before it loads.
    """
    from pipeline import importing

    with interruptible():
        done = importing.import_mar(path, out, inputs=inputs, outputs=outputs, samples=samples)
    rows = Table("", "", Column("", overflow="fold"), box=None, show_header=False, padding=(0, 1))
    colours = {"carried": "green", "kept": "cyan", "not carried": "yellow", "to do": "red"}
    for line in done.lines:
        told = (escape(printable(text)) for text in (line.what, line.detail))  # the archive's words
        rows.add_row(f"[{colours[line.outcome]}]{line.outcome}[/]", *told)
    console = Console()
    console.print(rows)
    _say(console, f"\n  wrote {escape(str(done.config))}")
    command = f"python -m pipeline build {shlex.quote(str(done.config))}"
    if done.problems:
        only_samples = done.sample_key and all(problem.key.startswith("samples") for problem in done.problems)
        hint = f"add them to the YAML, or: {command} --set {done.sample_key}=PATH" if only_samples else "edit the YAML"
        raise ConfigError(f"import-mar: {done.config} needs more before it builds", problems=done.problems, hint=hint)
    _say(console, f"  next: {escape(command)}")


def doctor(work_dir: Path) -> int:
    """Print what this machine has; 3 when something needed is missing."""
    console = Console()
    checks = diagnosis.checks(environment.probe(work_dir))
    rows = Table("", "what", Column("found", overflow="fold"), "needed for", box=None, padding=(0, 1))
    for check in checks:
        mark = "[green]✓[/green]" if check.ok else "[red]✗[/red]"
        rows.add_row(mark, check.name, escape(check.found), check.needed_for)
    console.print(rows)
    for check in checks:
        if check.fix:
            _say(console, f"  {escape(check.name)}: {escape(check.fix)}")
    return 0 if all(check.ok for check in checks) else 3


def cache_ls(work_dir: Path) -> None:
    """One line per entry of the step store."""
    rows = Table("step", "key", "size", "last used", box=None, header_style="bold", padding=(0, 2))
    entries = Store(work_dir / "store").entries()
    for row in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["last_used"]))
        rows.add_row(row["step"], row["key"][:12], human_bytes(row["size_bytes"]), used)
    console = Console()
    console.print(rows)
    console.print(f"{len(entries)} entries, {human_bytes(sum(row['size_bytes'] for row in entries))}", highlight=False)


def cache_gc(work_dir: Path, unused_days: float) -> None:
    """Delete what was not used for ``unused_days``, and at once what builds left beside repositories when they died."""
    count, freed = Store(work_dir / "store").collect(unused_days=unused_days)
    dead, left = publication.collect(work_dir)
    count, freed = count + dead, freed + left
    limit = time.time() - unused_days * 86400
    runs = work_dir / "runs"
    for folder in runs.iterdir() if runs.is_dir() else ():
        if folder.stat().st_mtime <= limit:
            freed += files.size_bytes(folder)
            count += 1
            files.remove_tree(folder)
    print(f"deleted {count} entries, freed {human_bytes(freed)}")


def cache_clear(work_dir: Path) -> None:
    """Delete the step store."""
    print(f"freed {human_bytes(Store(work_dir / 'store').clear())}")
