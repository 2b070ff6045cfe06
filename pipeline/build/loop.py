"""Calls the stages in order: source, samples and variants are made, emitted, proven and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import plan as planning
from pipeline.base import files
from pipeline.base.errors import MissingError, PipelineError
from pipeline.base.step import Made, Step
from pipeline.base.values import RunningServer
from pipeline.build import elsewhere, emission, expected, publication, source_gate, standing
from pipeline.build import variant as making
from pipeline.build.books import Books
from pipeline.build.executors.local import Local
from pipeline.build.run import Run
from pipeline.build.steps import Steps
from pipeline.config.load import LoadedConfig
from pipeline.data import datasets
from pipeline.machine import environment
from pipeline.plan import BuildPlan, Dependencies
from pipeline.report.summary import BuildReport
from pipeline.report.terminal import Terminal
from pipeline.sources import table as sources


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
    origin = sources.of(loaded.config.source)
    dependencies = Dependencies(
        source_digests=origin.digests(loaded.config.source, loaded.resolve),
        source_tools=origin.tools(loaded.config.source),
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
        stages.make(serve=options.serve)
        with publication.opened(stages.run):
            emission.emit(stages.run)
            if options.serve:
                expected.prove_rows(stages.run)
                elsewhere.prove(stages.run)
            publication.publish(stages.run)
        emission.published(stages.run)

    return _reported(stages.run, work)


def smoke(loaded: LoadedConfig, options: Options, terminal: Terminal, remote: RunningServer | None) -> BuildReport:
    """Smoke-test what is in the repository, on a server started here, or what is on the ``remote`` one.

    Raises:
        ConfigError: the plan cannot be made.
    """
    stages = Stages(make_plan(loaded, options), terminal)

    def work() -> None:
        stages.adopt(serve=remote is None)
        if remote is None:
            for row in stages.run.plan.rows:
                stages.run.adopt(row)
            expected.prove_rows(stages.run)
            elsewhere.prove(stages.run)
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

    try:
        files.write_atomic(report.run_dir / "report.json", report.record.model_dump_json(indent=2) + "\n")
        files.write_atomic(report.run_dir / "report.html", html.page(report.record))
    except MissingError as error:
        report = run.report(failure or error)  # the table shall still be printed
    return report


class Stages:
    """The making part of one plan; what is found is kept in ``run``."""

    def __init__(self, plan: BuildPlan, terminal: Terminal) -> None:
        self.run = Run(plan, terminal)
        self._plan = plan

    def make(self, *, serve: bool) -> None:
        """The source model, its golden samples, and all variants.

        Raises:
            MissingError: this machine lacks something; told before any work is done.
            StageError: the source cannot be made or does not run.
        """
        self._check(serve=serve)
        with Local(rows=len(self._plan.variants)) as executor:
            if to_do := self._to_do():
                executor.prepare(to_do, self.run.directory / "workers.log")
            self._prepare(self._steps(executor, {}))
            variants = making.wanted(self.run)
            making.make(self.run, self._steps(executor, making.owners(variants)), variants, executor.stop)

    def adopt(self, *, serve: bool) -> None:
        """The source model and its golden samples alone.

        Raises:
            MissingError: as ``make``.
            StageError: as ``make``.
        """
        self._check(serve=serve)
        with Local(rows=1) as executor:
            self._prepare(self._steps(executor, {}))

    def _to_do(self) -> list[Step]:
        """The steps that will have to run, as far as can be told."""
        possible = (variant for variant in self._plan.variants if not (variant.engine and variant.engine.lacking))
        steps = (self._plan.source, self._plan.samples, *(step for variant in possible for step in variant.steps))
        return [step for step in steps if not self.run.store.holds(step)]

    def _check(self, *, serve: bool) -> None:
        lacking = self._plan.missing_to_serve if serve else ()
        if not self.run.store.holds(self._plan.source):
            lacking = (*lacking, *self._plan.missing_to_build)
        if lacking:
            raise MissingError(
                "this machine lacks what the build needs", found="\n".join(lacking), hint="python -m pipeline doctor"
            )

    def _prepare(self, steps: Steps) -> None:
        steps.get(self._plan.source, _source_summary)
        steps.get(self._plan.samples, making.samples_summary)
        source_gate.check(self.run)

    def _steps(self, executor: Local, owners: Mapping[str, str]) -> Steps:
        name = self._plan.loaded.config.name
        return Steps(
            store=self.run.store,
            executor=executor,
            directory=self.run.directory,
            shown=self.run.stage,
            warn=self.run.line,
            owners={self._plan.source.name: name, self._plan.samples.name: name, **owners},
            made=self.run.entries,
        )


def _source_summary(made: Made) -> str:
    accuracy = made.values.get("accuracy")
    if accuracy is None:
        return " · ".join(made.notes)
    return " · ".join([f"accuracy {accuracy:.2%} on {made.values['test_samples']} held-out samples", *made.notes])
