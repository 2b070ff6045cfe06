"""Calls the stages in order: source and samples here, then variants made, emitted, proven and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import plan as planning
from pipeline import sources as source
from pipeline.base import files
from pipeline.base.errors import MissingError, PipelineError
from pipeline.base.values import BuildReport, RunningServer, SourceModel
from pipeline.build import deployments as deploy
from pipeline.build import emission, expected, publication, standing
from pipeline.build import variant as making
from pipeline.build.books import Books
from pipeline.build.run import Run
from pipeline.config.load import LoadedConfig
from pipeline.data import datasets, samples
from pipeline.machine import environment
from pipeline.plan import BuildPlan, Dependencies
from pipeline.report.summary import run_report
from pipeline.report.terminal import Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line adds to a configuration.

    Attributes:
        repository: overrides the YAML's; None takes the YAML's, else ``model_repository/`` in the working directory.
        work_dir: step store, logs and reports.
        variants: keys to build; empty for all.
        serve: prove the result on a real server.
    """

    repository: Path | None = None
    work_dir: Path = Path(".pipeline")
    variants: tuple[str, ...] = ()
    serve: bool = True


def make_plan(loaded: LoadedConfig, options: Options) -> BuildPlan:
    """Plan a build: digest the files it reads and look at this machine; runs nothing, imports no heavy library.

    Raises:
        ConfigError: a file is missing, or a variant named by ``options`` is not in the YAML.
    """
    data = loaded.samples_data or loaded.train_data
    dependencies = Dependencies(
        source_digests=source.digests(loaded.config.source, loaded.resolve),
        source_tools=source.tools(loaded.config.source),
        samples_digests=datasets.digests(data, loaded.resolve) if data else {},
        calibration_digests={
            key: datasets.digests(found[0], loaded.resolve)
            for key in loaded.config.variants
            if (found := planning.calibration_data(loaded, key)) is not None
        },
    )
    repository = options.repository or Path("model_repository")
    if options.repository is None and loaded.config.repository.path is not None:
        repository = loaded.resolve(loaded.config.repository.path)
    return planning.make(
        loaded,
        dependencies,
        environment.probe(options.work_dir),
        repository=repository.absolute(),
        work_dir=options.work_dir,
        keys=options.variants,
    )


def build(loaded: LoadedConfig, options: Options, terminal: Terminal) -> BuildReport:
    """Build one configuration; a failed variant does not stop its siblings, and fails the run.

    Returns:
        What became of it; also written to ``<work_dir>/runs/<run_id>/`` as report.json and report.html.

    Raises:
        ConfigError: the plan cannot be made.
    """
    stages = Stages(make_plan(loaded, options), terminal)

    def work() -> None:
        stages.prepare(serve=options.serve)
        for variant in stages.run.plan.variants:
            making.make(stages.run, variant, stages.source_model)
        with publication.opened(stages.run):
            emission.emit(stages.run)
            deploy.emit(stages.run)
            if options.serve:
                expected.prove_rows(stages.run)
                deploy.prove(stages.run)
            publication.publish(stages.run)
        deploy.published(stages.run)

    return _reported(stages.run, work)


def smoke(loaded: LoadedConfig, options: Options, terminal: Terminal, remote: RunningServer | None) -> BuildReport:
    """Smoke-test what is in the repository, on a server started here, or what is on the ``remote`` one.

    Raises:
        ConfigError: the plan cannot be made.
    """
    stages = Stages(make_plan(loaded, options), terminal)

    def work() -> None:
        stages.prepare(serve=remote is None)
        if remote is None:
            for row in stages.run.plan.rows:
                stages.run.adopt(row)
            expected.prove_rows(stages.run)
            deploy.prove(stages.run)
            stages.run.record_levels(stages.run.plan.rows)
        else:
            expected.prove_at(stages.run, remote)

    return _reported(stages.run, work)


def smoke_repository(
    root: Path, models: Sequence[str], work_dir: Path, terminal: Terminal, remote: RunningServer | None
) -> BuildReport:
    """Smoke-test what stands in a repository by its own records, here or on the ``remote`` server; no YAML is needed.

    Raises:
        ConfigError: no such repository or model, or nothing is known of it.
    """
    proof = standing.Proof(root.absolute(), models, work_dir, terminal)
    return _reported(proof, lambda: standing.prove_standing(proof, remote))


def _reported(run: Books, work: Callable[[], None]) -> BuildReport:
    failure: PipelineError | None = None
    try:
        work()
    except PipelineError as error:
        failure = error
    report = run.report(failure)
    from pipeline.report import html

    record = run_report(report)
    try:
        files.write_atomic(report.run_dir / "report.json", record.model_dump_json(indent=2) + "\n")
        files.write_atomic(report.run_dir / "report.html", html.page(record))
    except MissingError as error:
        report = run.report(failure or error)  # the table shall still be printed
    return report


class Stages:
    """Each stage, in order, for one plan; what they find is kept in ``run``."""

    def __init__(self, plan: BuildPlan, terminal: Terminal) -> None:
        self.run = Run(plan, terminal)
        self._plan = plan
        self._config = plan.loaded.config
        self._opened: SourceModel | None = None

    # ---- source and golden samples ----------------------------------------------------------------------------

    def prepare(self, *, serve: bool) -> None:
        """The source model and its golden samples.

        Raises:
            MissingError: this machine lacks something; told before any work is done.
            StageError: the model cannot be made or does not run.
        """
        lacking = self._plan.missing_to_serve if serve else ()
        if not self.run.store.holds(self._plan.source):
            lacking = (*lacking, *self._plan.missing_to_build)
        if lacking:
            raise MissingError(
                "this machine lacks what the build needs", found="\n".join(lacking), hint="python -m pipeline doctor"
            )
        step, loaded = self._plan.source, self._plan.loaded
        with self.run.stage(step.name, self._config.name) as stage:
            entry = self.run.step(
                step,
                stage,
                lambda folder: source.prepare(
                    self._config.source,
                    signature=self._plan.signature,
                    resolve=loaded.resolve,
                    out_dir=folder,
                    partial_dir=self.run.store.partial(step),
                    progress=stage.progress,
                ),
            )
            stage.result = _source_summary(entry.values)
        with self.run.stage(self._plan.samples.name, self._config.name) as stage:
            entry = self.run.step(self._plan.samples, stage, self._make_samples)
            stage.result = " · ".join([f"{entry.values['count']} samples", *entry.values["notes"]])

    def source_model(self) -> SourceModel:
        """Opened once, and only when a step that needs it has to run."""
        if self._opened is None:
            self._opened = source.open_source(
                self._config.source,
                signature=self._plan.signature,
                resolve=self._plan.loaded.resolve,
                directory=self.run.entries[self._plan.source.name].directory,
            )
        return self._opened

    def _make_samples(self, folder: Path) -> Mapping[str, Any]:
        loaded = self._plan.loaded
        return samples.make(
            self._config.samples,
            loaded.train_data,
            signature=self.run.signature,
            resolve=loaded.resolve,
            runtime=self.source_model().runtime,
            seed=loaded.train_seed,
            out_dir=folder,
        )


def _source_summary(values: Mapping[str, Any]) -> str:
    accuracy, notes = values.get("accuracy"), values.get("notes", [])
    if accuracy is None:
        return " · ".join(notes)
    return " · ".join([f"accuracy {accuracy:.2%} on {values['test_samples']} held-out samples", *notes])
