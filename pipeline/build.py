"""Calls the stages in order: source, golden samples, export, parity, repository; prove.py goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline import __version__, datasets, environment, files, samples, source
from pipeline import plan as planning
from pipeline import prove as proving
from pipeline.artifacts import (
    AccuracyResult,
    Artifact,
    BuildReport,
    ParityResult,
    RunningServer,
    Runtime,
    Signature,
    SourceModel,
)
from pipeline.config.load import LoadedConfig
from pipeline.errors import GateError, MissingError, PipelineError
from pipeline.plan import BuildPlan, Dependencies, Variant
from pipeline.report.summary import human_bytes, run_report
from pipeline.report.terminal import Terminal
from pipeline.repository import config_pbtxt, versions
from pipeline.run import Run
from pipeline.store import Entry, Step, tool_versions


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
    data = planning.samples_data(loaded) or planning.train_data(loaded)
    dependencies = Dependencies(
        source_digests=source.digests(loaded.config.source, loaded.resolve),
        source_tools=source.tools(loaded.config.source),
        samples_digests=datasets.digests(data, loaded.resolve) if data else {},
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
        What became of it; also written to ``<work_dir>/runs/<run_id>/report.json``.

    Raises:
        ConfigError: the plan cannot be made.
    """
    stages = Stages(make_plan(loaded, options), terminal)

    def work() -> None:
        stages.prepare(serve=options.serve)
        for variant in stages.run.plan.variants:
            stages.make(variant)
        if options.serve:
            proving.prove(stages.run)

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
            proving.adopt(stages.run)
            proving.prove(stages.run)
        else:
            proving.prove_at(stages.run, remote)

    return _reported(stages.run, work)


def _reported(run: Run, work: Callable[[], None]) -> BuildReport:
    failure: PipelineError | None = None
    try:
        work()
    except PipelineError as error:
        failure = error
    report = run.report(failure)
    try:
        files.write_atomic(report.run_dir / "report.json", run_report(report).model_dump_json(indent=2) + "\n")
    except MissingError as error:
        report = run.report(failure or error)  # the table shall still be printed
    return report


class Stages:
    """Each stage, in order, for one plan; what they find is kept in ``run``."""

    def __init__(self, plan: BuildPlan, terminal: Terminal) -> None:
        self.run = Run(plan, terminal)
        self._plan = plan
        self._config = plan.loaded.config

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

    @cached_property
    def _source_model(self) -> SourceModel:
        """Opened only when a step that needs it has to run."""
        return source.open_source(
            self._config.source,
            signature=self._plan.signature,
            resolve=self._plan.loaded.resolve,
            directory=self.run.entries[self._plan.source.name].directory,
        )

    def _make_samples(self, folder: Path) -> Mapping[str, Any]:
        loaded = self._plan.loaded
        return samples.make(
            self._config.samples,
            planning.train_data(loaded),
            signature=self.run.signature,
            resolve=loaded.resolve,
            runtime=self._source_model.runtime,
            seed=planning.train_seed(loaded),
            out_dir=folder,
        )

    # ---- one variant --------------------------------------------------------------------------------------------

    def make(self, variant: Variant) -> None:
        """Export one variant, judge it, and put it into the repository."""
        with self.run.guarded(variant, "build"):
            artifact = self._export(variant)
            self._judge(variant, artifact)
            self._emit(variant, artifact)

    def _export(self, variant: Variant) -> Artifact:
        step = variant.export
        with self.run.stage(step.name, variant.identifier) as stage:
            entry = self.run.step(step, stage, lambda folder: self._make_export(variant, folder))
            path = entry.directory / entry.values["file"]
            artifact = Artifact(
                path=path,
                kind=variant.format,
                sha256=files.sha256_tree(path),
                size_bytes=files.size_bytes(path),
                tool_versions=tool_versions(step.tools),
                notes=tuple(self._relative(note) for note in entry.values["notes"]),
                properties=entry.values["properties"],
            )
            stage.result = human_bytes(artifact.size_bytes)
        self.run.update(variant, artifact=artifact, cached=entry.cached)
        self.run.note(variant, *artifact.notes, *_rebuilt(step, entry))
        return artifact

    def _relative(self, note: str) -> str:
        """Paths of the user's code as the YAML would write them: a manifest must not tell where it was built."""
        return note.replace(f"{self._plan.loaded.path.parent.resolve()}/", "")

    def _make_export(self, variant: Variant, folder: Path) -> Mapping[str, Any]:
        arguments: dict[str, Any] = {"signature": self._plan.signature, "golden": self.run.golden, "out_dir": folder}
        if variant.format == "torchscript":
            from pipeline.export import torchscript

            return torchscript.export(self._source_model, **arguments, **variant.options)
        from pipeline.export import onnx

        return onnx.export(self._source_model, **arguments, **variant.options)

    def _judge(self, variant: Variant, artifact: Artifact) -> None:
        """In-process parity and accuracy, and the gates.

        Raises:
            GateError: the numbers are refused; they are kept in the result.
        """
        step = variant.parity
        with self.run.stage(step.name, variant.identifier) as stage:
            entry = self.run.step(step, stage, lambda folder: self._measure(variant, artifact))
            parity = _parity_of(entry.values["parity"], variant)
            accuracy = AccuracyResult(**entry.values["accuracy"]) if entry.values["accuracy"] else None
            cached = self.run.results[variant.key].cached and entry.cached
            self.run.update(variant, parity=parity, accuracy=accuracy, cached=cached)
            self.run.note(variant, *_rebuilt(step, entry))
            stage.result = f"max abs {parity.max_abs:.1e}" + (f" · accuracy {accuracy.value:.2%}" if accuracy else "")
            for verdict in (parity, accuracy):
                if verdict and not verdict.passed:
                    raise GateError(
                        f"parity[{variant.identifier}]: refused by a gate",
                        found=verdict.reason,
                        where=self._plan.loaded.where("variants", variant.key),
                        hint="nothing was emitted; try another exporter or method, or loosen `gates` if you accept it",
                    )

    def _measure(self, variant: Variant, artifact: Artifact) -> Mapping[str, Any]:
        from pipeline import parity

        runtime = _open(artifact, self._plan.signature)
        sizes = parity.batch_sizes(variant.max_batch_size)
        measured = parity.measure(runtime, self.run.golden, batch_sizes=sizes, tolerance=variant.tolerance)
        accuracy = parity.accuracy(runtime, self.run.golden, gate=variant.accuracy_gate)
        return {"parity": asdict(measured), "accuracy": asdict(accuracy) if accuracy else None}

    def _emit(self, variant: Variant, artifact: Artifact) -> None:
        backend, _, file_name = config_pbtxt.BACKENDS[variant.format]
        with self.run.stage(f"repository[{variant.identifier}]", variant.identifier) as stage:
            version = versions.Version(
                model_name=variant.identifier,
                backend=backend,
                file_name=file_name,
                artifact=artifact.path,
                model_files=self.run.model_files(variant).files,
                golden=self.run.golden_path,
                manifest=self._manifest(variant, artifact),
            )
            entry = versions.publish(
                self._plan.repository,
                version,
                retain=self._config.repository.retain,
                waiting=lambda holder: stage.progress(f"waiting for {holder}", None),
            )
            stage.cached = not entry.created
            stage.result = f"version {entry.version}"
        cached = self.run.results[variant.key].cached and not entry.created
        self.run.update(variant, entry=entry, cached=cached)
        self.run.note(variant, *entry.notes)

    def _manifest(self, variant: Variant, artifact: Artifact) -> Mapping[str, Any]:
        """What is known of a version; nothing in it depends on when or where it was built."""
        result = self.run.results[variant.key]
        made_by = self._plan.source
        record = {
            "schema": 1,
            "tool": f"model-repository-pipeline {__version__}",
            "model": self._config.name,
            "variant": variant.key,
            "format": variant.format,
            "precision": variant.precision,
            "target": {"release": self._plan.limits.release, "onnxruntime": self._plan.limits.onnxruntime},
            "sha256": artifact.sha256,
            "properties": dict(artifact.properties),
            "tool_versions": dict(artifact.tool_versions),
            "source": {
                "settings": self._config.source.model_dump(mode="json", by_alias=True, exclude_none=True),
                "files": dict(made_by.inputs),
                "sha256": self.run.entries[made_by.name].digest,
                "tool_versions": tool_versions(made_by.tools),
            },
            "parity": asdict(result.parity) if result.parity else None,
            "accuracy": asdict(result.accuracy) if result.accuracy else None,
            "notes": list(artifact.notes),
        }
        masked: dict[str, Any] = json.loads(self._plan.loaded.masked(json.dumps(record)))
        return masked


def _rebuilt(step: Step, entry: Entry) -> tuple[str, ...]:
    return (f"{step.name} was run again: {entry.rebuilt}",) if entry.rebuilt else ()


def _source_summary(values: Mapping[str, Any]) -> str:
    accuracy, notes = values.get("accuracy"), values.get("notes", [])
    if accuracy is None:
        return " · ".join(notes)
    return " · ".join([f"accuracy {accuracy:.2%} on {values['test_samples']} held-out samples", *notes])


def _parity_of(values: Mapping[str, Any], variant: Variant) -> ParityResult:
    typed = {**values, "batch_sizes": tuple(values["batch_sizes"]), "tolerance": variant.tolerance}
    return ParityResult(**typed)


def _open(artifact: Artifact, signature: Signature) -> Runtime:
    if artifact.kind == "torchscript":
        from pipeline.runtimes.torchscript import TorchScriptRuntime

        return TorchScriptRuntime(artifact.path, signature)
    from pipeline.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(artifact.path, signature)
