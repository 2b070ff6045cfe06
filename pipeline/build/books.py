"""What is known while something is being built or proven: results, times, logs, proof levels."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from pipeline.base.errors import MissingError, PipelineError, SmokeError
from pipeline.base.values import Measurement, ProofLevel, RepositoryEntry, SmokeResult, VariantResult
from pipeline.machine import environment
from pipeline.report.log import StageLog
from pipeline.report.summary import BuildReport
from pipeline.report.terminal import Stage, Terminal
from pipeline.repository import manifest as manifests


class Named(Protocol):
    """A row of the report by its names."""

    @property
    def key(self) -> str:
        """Unique in a run."""

    @property
    def identifier(self) -> str:
        """What it is called where it is served; names its log."""


class Books:
    """The books of one run.

    Attributes:
        work_dir: where runs are kept.
        directory: logs and report.json of this run.
        results: what is known of each row of the report, by its key.
        levels: how far versions were proven, by root, model and number.
        server_log: the server's log, once one was started.
    """

    def __init__(self, work_dir: Path, subject: str, rows: Mapping[str, VariantResult], terminal: Terminal) -> None:
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:6]}"
        self.directory = (work_dir / "runs" / self.run_id).absolute()
        self.results = dict(rows)
        self.levels: dict[tuple[Path, str, int], ProofLevel] = {}
        self.server_log: Path | None = None
        self.work_dir, self._subject = work_dir, subject
        self._terminal = terminal
        self._durations_s: dict[str, float] = {}
        self._began = time.monotonic()
        terminal.align(f"repository[{row.identifier}]" for row in self.results.values())

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

    def line(self, text: str) -> None:
        """Print a line for a person."""
        self._terminal.line(text)

    def update(self, row: Named, **changes: Any) -> None:
        """Add to what is known of a row."""
        self.results[row.key] = replace(self.results[row.key], **changes)

    def note(self, row: Named, *notes: str) -> None:
        """Add lines a person should read at the end."""
        self.update(row, notes=(*self.results[row.key].notes, *notes))

    def fail(self, row: Named, failure: PipelineError, command: str) -> None:
        """Keep a row's failure, with the command that repeats just that."""
        failure.log = failure.log or str(self.directory / f"{row.identifier}.log")
        text, again = self.masked(str(failure)), self.reproduce(row, command)
        self.update(row, error=text, exit_code=failure.exit_code, reproduce=again)

    @contextlib.contextmanager
    def guarded(self, row: Named, command: str) -> Iterator[None]:
        """Keep a row's failure to that row."""
        try:
            yield
        except PipelineError as failure:
            self.fail(row, failure, command)

    def judge(self, row: Named, result: SmokeResult, *, log: Path | None = None) -> None:
        """Keep what became of a row's smoke test.

        Raises:
            SmokeError: a check failed.
        """
        self.update(row, smoke=result)
        if not result.passed:
            hint = "read the log" if log else "build it again"
            raise SmokeError(
                f"smoke[{row.identifier}]: {len(result.failed)} of {len(result.checks)} checks failed",
                found="\n".join(f"{check.name} ({check.protocol}): {check.detail}" for check in result.failed),
                hint="; ".join([hint, *self.consequence(row)]),
                log=str(log) if log else "",
            )

    def measured(self, row: Named, found: Measurement | SmokeError) -> None:
        """Keep how fast a row answers; a server that gives out under that is said, and is no failure of the row."""
        if isinstance(found, SmokeError):
            self.update(row, unmeasured=" ".join(f"{found.what}: {found.found}".removesuffix(": ").split()))
        else:
            self.update(row, measurement=found)

    def prove(self, entry: RepositoryEntry, level: ProofLevel) -> None:
        """Keep how far a version was proven."""
        self.levels[entry.root, entry.model_name, entry.version] = level

    def record_levels(self, rows: Iterable[Named]) -> None:
        """Write down how far standing versions are proven now; what cannot be written is noted, and is no failure."""
        lost = ""
        for (root, model, number), level in self.levels.items():
            try:
                manifests.raise_level(root, model, number, level)
            except MissingError as error:
                lost = f"its proof level could not be written down: {error.what}: {error.found}"
        for row in rows:
            result = self.results[row.key]
            if result.entry is not None and not result.error:
                entry = result.entry
                level = self.levels.get((entry.root, entry.model_name, entry.version), "none")
                known = manifests.level_of(manifests.read_manifest(entry.root, entry.model_name, entry.version) or {})
                self.update(row, proof=max(level, known, key=manifests.LEVELS.index))
                self.note(row, *([lost] if lost else []))

    def masked(self, text: str) -> str:
        """A text without the user's secrets."""
        return text

    def reproduce(self, row: Named, command: str) -> str:
        """The command that does a row's failed step again, or empty."""
        return ""

    @property
    def planned(self) -> tuple[str, ...]:
        """The stages whose times come first, in this order."""
        return ()

    def consequence(self, row: Named) -> tuple[str, ...]:
        """What a failed smoke test means for the repository, in words, where it means anything."""
        return ()

    def report(self, failure: PipelineError | None) -> BuildReport:
        """Everything known at the end; the exit code is the greatest of all failures'."""
        results, spent = tuple(self.results.values()), self._durations_s
        codes = [result.exit_code for result in results]
        return BuildReport(
            run_id=self.run_id,
            config=self._subject,
            environment=environment.summary(self.work_dir),
            durations_s={name: spent[name] for name in (*self.planned, *spent) if name in spent},
            exit_code=max([failure.exit_code if failure else 0, *codes]),
            variants=results,
            run_dir=self.directory,
            error=self.masked(str(failure)) if failure else "",
            server_log=self.server_log,
            elapsed_s=time.monotonic() - self._began,
        )
