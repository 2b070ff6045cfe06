"""What is known while one configuration is being built: the books, and what follows from its plan and its steps."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import plan as planning
from pipeline.base.errors import StageError
from pipeline.base.store import Entry, Step, Store
from pipeline.base.values import GoldenSamples, RepositoryEntry, Signature, VariantResult
from pipeline.build.books import Books, Named
from pipeline.config import images
from pipeline.data import samples
from pipeline.images.postprocessing import Postprocessing
from pipeline.plan import BuildPlan, Row, Variant
from pipeline.report.terminal import Stage, Terminal
from pipeline.repository import versions
from pipeline.repository.candidate import Candidate
from pipeline.repository.versions import Version
from pipeline.servers.triton import config_pbtxt


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
        self.entries: dict[str, Entry] = {}
        self.candidates: dict[Path, Candidate] = {}

    def step(self, step: Step, stage: Stage, produce: Callable[[Path], Mapping[str, Any]]) -> Entry:
        """Get a step from the store, or do it; say so when a stored result could not be used."""
        upstream = {role: self.entries[other.name] for role, other in step.upstream.items()}
        entry = self.store.run(step, produce, upstream)
        self.entries[step.name] = entry
        stage.cached = entry.cached
        if entry.rebuilt:
            self._terminal.line(f"    [yellow]{step.name}: the stored result was not used: {entry.rebuilt}[/yellow]")
        return entry

    def note_rebuilt(self, row: Row, step: Step, entry: Entry) -> None:
        """Say why a step was run again although its result was stored, where that was so."""
        if entry.rebuilt:
            self.note(row, f"{step.name} was run again: {entry.rebuilt}")

    def emit(self, row: Row, version: Version, stage: Stage) -> RepositoryEntry:
        """Put a version of a row into the candidate of its root.

        Raises:
            StageError: the model directory was not written by this tool.
            MissingError: disk full, or not writable.
        """
        entry = self.candidates[row.root].add(version, retain=self.plan.loaded.config.repository.retain)
        stage.cached = not entry.created
        stage.result = f"version {entry.version}"
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
        known = next((entry.values["labels"] for entry in made if entry and entry.values.get("labels")), ())
        signature = planning.with_source_labels(self.plan, tuple(known))
        for spec in signature.outputs:
            if spec.labels and isinstance(spec.shape[-1], int) and spec.shape[-1] != len(spec.labels):
                raise StageError(
                    f"labels: output {spec.name} has {spec.shape[-1]} scores and {len(spec.labels)} labels",
                    where=self.plan.loaded.where("outputs", spec.name, "labels"),
                    hint="give one label per score",
                )
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
