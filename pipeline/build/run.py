"""What is known while one configuration is being built: results, step entries, times, logs."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

from pipeline import plan as planning
from pipeline.base import signatures
from pipeline.base.errors import PipelineError, SmokeError, StageError
from pipeline.base.step import Made, Outcome, Step, Task, call
from pipeline.base.store import Store
from pipeline.base.values import GoldenSamples, RepositoryEntry, Signature, SmokeResult, VariantResult
from pipeline.config import images
from pipeline.data import samples
from pipeline.images.postprocessing import Postprocessing
from pipeline.machine import environment
from pipeline.plan import BuildPlan, EnsemblePlan, Row, Variant
from pipeline.report.log import StageLog
from pipeline.report.summary import BuildReport
from pipeline.report.terminal import Stage, Terminal
from pipeline.repository import versions
from pipeline.servers.triton import config_pbtxt


class Run:
    """The books of one run.

    Attributes:
        plan: what is being done.
        store: where finished steps are kept.
        directory: logs and report.json of this run.
        entries: the entries of the steps done so far, by step name.
        results: what is known of each row of the report, by its key.
        server_log: the server's log, once one was started.
    """

    def __init__(self, plan: BuildPlan, terminal: Terminal) -> None:
        self.plan = plan
        self.store = Store(plan.work_dir / "store")
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:6]}"
        self.directory = (plan.work_dir / "runs" / self.run_id).absolute()
        self.entries: dict[str, Made] = {}
        self.results = {row.key: _blank(plan, row) for row in plan.rows}
        self.server_log: Path | None = None
        self._terminal = terminal
        self._durations_s: dict[str, float] = {}
        self._began = time.monotonic()
        names = [row.identifier for row in plan.rows]
        terminal.align(f"repository[{name}]" for name in names)

    @contextlib.contextmanager
    def stage(self, name: str, log_name: str, *, waits: bool = False) -> Iterator[Stage]:
        """Show, log and time a stage.

        Args:
            name: the stage's.
            log_name: of its log.
            waits: it counts from ``Stage.begin`` on, and another process does the work.
        """
        log = StageLog(self.directory / f"{log_name}.log", name, capture=not waits)
        with log, self._terminal.stage(name, waits=waits) as stage:
            try:
                yield stage
            finally:
                self._durations_s[name] = self._durations_s.get(name, 0.0) + time.monotonic() - stage.started

    def step(self, step: Step, stage: Stage, log_path: Path | None = None) -> Made:
        """Get a step from the store, or do it in this process; say so when a stored result could not be used."""
        upstream = {role: self.entries[other.name] for role, other in step.upstream.items()}

        def produce(folder: Path) -> Outcome:
            log = log_path or self.directory / f"{step.name}.log"
            partial_dir = self.store.partial(step)
            task = Task(step=step, upstream=upstream, out_dir=folder, partial_dir=partial_dir, log_path=log)
            return call(task, stage.progress)

        made = self.store.run(step, produce, upstream)
        self.entries[step.name] = made
        stage.cached = made.cached
        if made.rebuilt:
            self.line(f"    [yellow]{step.name}: the stored result was not used: {made.rebuilt}[/yellow]")
        return made

    def line(self, text: str) -> None:
        """Print a line for a person."""
        self._terminal.line(text)

    def update(self, row: Row, **changes: Any) -> None:
        """Add to what is known of a variant or a deployment."""
        self.results[row.key] = replace(self.results[row.key], **changes)

    def note(self, row: Row, *notes: str) -> None:
        """Add lines a person should read at the end."""
        self.update(row, notes=(*self.results[row.key].notes, *notes))

    def note_rebuilt(self, row: Row, step: Step, made: Made) -> None:
        """Say why a step was run again although its result was stored, where that was so."""
        if made.rebuilt:
            self.note(row, f"{step.name} was run again: {made.rebuilt}")

    def fail(self, row: Row, failure: PipelineError, command: str) -> None:
        """Keep a row's failure, with the command that repeats just that."""
        failure.log = failure.log or str(self.directory / f"{row.identifier}.log")
        text, again = self.plan.loaded.masked(str(failure)), self._reproduce(row, command)
        self.update(row, error=text, exit_code=failure.exit_code, reproduce=again)

    @contextlib.contextmanager
    def guarded(self, row: Row, command: str) -> Iterator[None]:
        """Keep a row's failure to that row."""
        try:
            yield
        except PipelineError as failure:
            self.fail(row, failure, command)

    def publish(self, row: Row, root: Path, version: versions.Version, stage: Stage) -> RepositoryEntry:
        """Put a version of a row into a repository, unless it is there already.

        Raises:
            StageError: the model directory was not written by this tool.
            MissingError: disk full, not writable, or another build holds the repository for too long.
        """
        entry = versions.publish(
            root,
            version,
            retain=self.plan.loaded.config.repository.retain,
            waiting=lambda holder: stage.progress(f"waiting for {holder}", None),
        )
        stage.cached = not entry.created
        stage.result = f"version {entry.version}"
        self.note(row, *entry.notes)
        return entry

    def publish_served(self, row: Variant | EnsemblePlan, version: versions.Version, stage: Stage) -> RepositoryEntry:
        """Put a version of what Triton serves into its repository; say so where another one holds such a model too.

        Raises:
            StageError: see publish.
            MissingError: see publish.
        """
        root, model = self.plan.root(row), version.model_name
        for other in self.plan.roots:
            if other != root and (other / model).is_dir():
                self.note(
                    row,
                    f"it goes to {root.name}; {other.name}/{model}, of an earlier build, is left as it is: remove it, "
                    "or what it serves is out of date",
                )
        return self.publish(row, root, version, stage)

    def adopt(self, row: Row, root: Path, model: str) -> None:
        """Take the newest version of a model in a repository as what shall be proven; none is the row's failure."""
        if entry := versions.newest(root, model):
            self.update(row, entry=entry)
            return
        nothing = StageError(
            f"smoke[{row.identifier}]: nothing to serve",
            where=str(root),
            hint="build it first, or name --repository or --url",
        )
        self.fail(row, nothing, "build")

    def judge(self, row: Row, result: SmokeResult, *, log: Path | None = None) -> None:
        """Keep what became of a row's smoke test.

        Raises:
            SmokeError: a check failed.
        """
        self.update(row, smoke=result)
        if not result.passed:
            raise SmokeError(
                f"smoke[{row.identifier}]: {len(result.failed)} of {len(result.checks)} checks failed",
                found="\n".join(f"{check.name} ({check.protocol}): {check.detail}" for check in result.failed),
                hint=f"{'read the log' if log else 'build it again'}; do not publish this version",
                log=str(log) if log else "",
            )

    @property
    def golden_path(self) -> Path:
        """The golden samples' file, once that step is done."""
        return self.entries[self.plan.samples.name].directory / "samples.npz"

    @cached_property
    def golden(self) -> GoldenSamples:
        """The golden samples, read once."""
        return samples.read(self.golden_path)

    @property
    def signature(self) -> Signature:
        """With the labels that only the source or, once they are made, the golden samples know.

        Raises:
            StageError: their number is not the output's last dimension.
        """
        made = (self.entries.get(step.name) for step in (self.plan.source, self.plan.samples))
        known = next((one.values["labels"] for one in made if one and one.values.get("labels")), ())
        signature = planning.with_source_labels(self.plan, tuple(known))
        names = [spec.name for spec in signature.outputs]
        signatures.check_labels(signature, {name: self.plan.loaded.where("outputs", name, "labels") for name in names})
        return signature

    @property
    def postprocessing(self) -> tuple[str, Postprocessing] | None:
        """The output that holds the scores and how they become labels; None where the YAML has no `postprocess`."""
        section = self.plan.loaded.config.postprocess
        return images.postprocessing(section, self.signature) if section else None

    @property
    def scores(self) -> tuple[str, Postprocessing]:
        """The same for what is made only where the YAML has a `postprocess`: the ensemble, a program."""
        found = self.postprocessing
        assert found is not None
        return found

    def model_files(self, variant: Variant) -> config_pbtxt.ModelFiles:
        """A variant's config.pbtxt and the files beside it."""
        return config_pbtxt.describe(
            model_name=variant.identifier,
            kind=variant.kind,
            signature=self.signature,
            max_batch_size=variant.max_batch_size,
            fields=variant.fields,
            warmup=self.golden.samples[0],
            engines=variant.engine.file_names if variant.engine else None,
            profiles=len(variant.engine.spec.profiles) if variant.kind == "tensorrt" and variant.engine else 1,
        )

    def _reproduce(self, row: Row, command: str) -> str:
        words = ["python", "-m", "pipeline", command, str(self.plan.loaded.path)]
        words += ["--variant", row.key] if row.key in self.plan.loaded.config.variants else []
        words += ["--repository", str(self.plan.repository), "--work-dir", str(self.plan.work_dir)]
        words += [word for override in self.plan.loaded.overrides for word in ("--set", override)]
        return shlex.join([*words, "--no-serve"] if command == "build" else words)

    def report(self, failure: PipelineError | None) -> BuildReport:
        """Everything known at the end; the exit code is the greatest of all failures'."""
        results, spent = tuple(self.results.values()), self._durations_s
        planned = [step.name for step in self.plan.steps]
        codes = [result.exit_code for result in results]
        return BuildReport(
            run_id=self.run_id,
            config=str(self.plan.loaded.path),
            environment=environment.summary(self.plan.work_dir),
            durations_s={name: spent[name] for name in (*planned, *spent) if name in spent},
            exit_code=max([failure.exit_code if failure else 0, *codes]),
            variants=results,
            run_dir=self.directory,
            error=self.plan.loaded.masked(str(failure)) if failure else "",
            server_log=self.server_log,
            elapsed_s=time.monotonic() - self._began,
        )


def _blank(plan: BuildPlan, row: Row) -> VariantResult:
    return VariantResult(
        identifier=row.identifier,
        model=plan.loaded.config.name,
        format=row.format,
        precision=row.precision,
        server=row.server,
    )
