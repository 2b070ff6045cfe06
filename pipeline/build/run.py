"""What is known while one configuration is being built: the books, and what follows from its plan and its steps."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import plan as planning
from pipeline.base import signatures
from pipeline.base.errors import StageError
from pipeline.base.step import Made, Outcome, Step, Task, call
from pipeline.base.store import Store
from pipeline.base.values import GoldenSamples, RepositoryEntry, Signature, VariantResult
from pipeline.build.books import Books, Named
from pipeline.data import images, samples
from pipeline.plan import BuildPlan, Row
from pipeline.report.terminal import Stage, Terminal
from pipeline.repository import versions
from pipeline.repository.candidate import Candidate
from pipeline.repository.versions import Version
from pipeline.servers.work import Given


class Run(Books):
    """The books of one build.

    Attributes:
        plan: what is being done.
        store: where finished steps are kept.
        entries: the entries of the steps done so far, by step name.
        candidates: what was emitted, by the root that it is for; empty where a repository is proven as it stands.
    """

    def __init__(self, plan: BuildPlan, terminal: Terminal) -> None:
        rows = {row.key: _blank(plan, row) for row in plan.rows}
        super().__init__(plan.work_dir, str(plan.loaded.path), rows, terminal)
        self.plan = plan
        self.store = Store(plan.work_dir / "store")
        self.entries: dict[str, Made] = {}
        self.candidates: dict[Path, Candidate] = {}

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

    def note_rebuilt(self, row: Row, step: Step, made: Made) -> None:
        """Say why a step was run again although its result was stored, where that was so."""
        if made.rebuilt:
            self.note(row, f"{step.name} was run again: {made.rebuilt}")

    def emit(self, row: Row, version: Version, stage: Stage) -> RepositoryEntry:
        """Put a version of a row into the candidate of its root.

        Raises:
            StageError: the model directory was not written by this tool.
            MissingError: disk full, or not writable.
        """
        version = replace(version, manifest=json.loads(self.masked(json.dumps(version.manifest))))
        entry = self.candidates[row.root].add(version, retain=self.plan.loaded.config.repository.retain)
        stage.cached = not entry.created
        stage.result = f"version {entry.version}"
        for other in self.plan.roots if row.root in self.plan.roots else ():
            if other != row.root and (other / version.model_name).is_dir():
                self.note(
                    row,
                    f"it goes to {row.root.name}; {other.name}/{version.model_name}, of an earlier build, is left as "
                    "it is: remove it, or what it serves is out of date",
                )
        return entry

    def adopt(self, row: Row) -> None:
        """Take the newest version in the row's root as what shall be proven; none is the row's failure."""
        if not row.published:
            return
        if entry := versions.newest(row.root, row.published[-1]):
            self.update(row, entry=entry)
            return
        nothing = StageError(
            f"smoke[{row.identifier}]: nothing to serve",
            where=str(row.root),
            hint="build it first, or name --repository or --url",
        )
        self.fail(row, nothing, "build")

    def masked(self, text: str) -> str:
        """A text without the user's secrets."""
        return self.plan.loaded.masked(text)

    def consequence(self, row: Named) -> tuple[str, ...]:
        """That nothing was published, in a build."""
        entry = self.results[row.key].entry
        if not self.candidates or entry is None:
            return ()
        return (f"version {entry.version} was not published" if entry.created else "nothing was published",)

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

    def given(self, row: Row) -> Given[Any]:
        """What a row's server is given of it; the golden samples are done."""
        signature, section = self.signature, self.plan.loaded.config.postprocess
        return Given(
            row=row,
            signature=signature,
            scores=images.postprocessing(section, signature) if section else None,
            golden=self.golden,
            golden_path=self.golden_path,
            samples=self.plan.samples,
            serve=self.plan.loaded.config.serve,
            limits=self.plan.limits,
            where=self.plan.loaded.where,
            directory=self.directory,
            work_dir=self.plan.work_dir,
        )

    @property
    def planned(self) -> tuple[str, ...]:
        """The plan's steps, whatever order their processes ended in."""
        return tuple(step.name for step in self.plan.steps)

    def reproduce(self, row: Named, command: str) -> str:
        """The command that does a row's failed step again."""
        words = ["python", "-m", "pipeline", command, str(self.plan.loaded.path)]
        words += ["--variant", row.key] if row.key in self.plan.loaded.config.variants else []
        words += ["--repository", str(self.plan.repository), "--work-dir", str(self.plan.work_dir)]
        words += [word for override in self.plan.loaded.overrides for word in ("--set", override)]
        return shlex.join([*words, "--no-serve"] if command == "build" else words)


def _blank(plan: BuildPlan, row: Row) -> VariantResult:
    return VariantResult(
        identifier=row.identifier,
        model=plan.loaded.config.name,
        format=row.format,
        precision=row.precision,
        server=row.server,
    )
