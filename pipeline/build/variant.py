"""One variant, from the source model to a judged file: export, reduce, judge, engine; nothing is emitted here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.base.errors import MissingError
from pipeline.base.store import TIMING_CACHES, Step, tool_versions
from pipeline.base.values import Artifact, GoldenSamples, Progress, SourceModel
from pipeline.build import gate
from pipeline.build.run import Run
from pipeline.data import samples
from pipeline.formats.tensorrt.failures import UnavailableError
from pipeline.machine.target import tensorrt_image
from pipeline.plan import EnginePlan, Reduction, Variant, inheritance
from pipeline.report.units import human_bytes


def make(run: Run, variant: Variant, source_model: Callable[[], SourceModel]) -> None:
    """Make one variant; its failure is kept to it.

    Args:
        run: the books; source and golden samples are done.
        variant: what to make.
        source_model: opens the source model, for a step that really has to run.
    """
    with run.guarded(variant, "build"):
        if variant.engine and variant.engine.lacking and _skipped(run, variant, variant.engine):
            return
        if variant.engine:
            _check_profiles(run, variant, variant.engine)
        graph = _export(run, variant, source_model)
        if variant.reduction is not None:
            graph = _reduce(run, variant, variant.reduction, graph)
        gate.judge(run, variant, variant.parity, lambda: gate.open_graph(run, variant, graph.path))
        artifact = _engine(run, variant, variant.engine, graph) if variant.engine else graph
        if artifact is None:
            return
        if variant.engine and variant.engine.parity:
            gate.judge(
                run, variant, variant.engine.parity, lambda: gate.open_engine(run, variant, artifact.path.parent)
            )
        if variant.server == "tfserving":  # its deployment emits it
            run.note(variant, f"not in Triton's repository: {run.plan.limits.release} has no TensorFlow backend")


def _skipped(run: Run, variant: Variant, engine: EnginePlan) -> bool:
    """Note that the engine cannot be built here, where the YAML allows that.

    Raises:
        MissingError: it does not.
    """
    found = "\n".join(engine.lacking)
    if not engine.skip:
        raise MissingError(
            f"engine[{variant.identifier}]: this machine cannot build it",
            found=found,
            where=run.plan.loaded.where("variants", variant.key, "engine"),
            hint="install what is missing, or say `when_unavailable: skip`",
        )
    run.update(variant, skipped=found)
    return True


# ---- files --------------------------------------------------------------------------------------------------------


def _export(run: Run, variant: Variant, source_model: Callable[[], SourceModel]) -> Artifact:
    def produce(folder: Path) -> Mapping[str, Any]:
        if run.plan.loaded.config.source.is_tensorflow:
            return _export_tensorflow(run, variant, source_model(), folder)
        arguments: dict[str, Any] = {"signature": run.plan.signature, "golden": run.golden, "out_dir": folder}
        if variant.kind == "torchscript":
            from pipeline.formats.torchscript import export as torchscript

            return torchscript.export(source_model(), **arguments, **variant.options)
        from pipeline.formats.onnx import export as onnx

        return onnx.export(source_model(), **arguments, **variant.options)

    return _made(run, variant, variant.export, lambda folder, _: produce(folder))


def _export_tensorflow(run: Run, variant: Variant, source: SourceModel, folder: Path) -> Mapping[str, Any]:
    from pipeline.formats.saved_model import export as tensorflow

    if variant.kind == "saved_model":
        return tensorflow.saved_model(source, signature=run.plan.signature, out_dir=folder)
    return tensorflow.onnx(source, signature=run.plan.signature, out_dir=folder, **variant.options)


def _reduce(run: Run, variant: Variant, reduction: Reduction, exported: Artifact) -> Artifact:
    measured = _calibration(run, variant, variant.calibration) if variant.calibration else None

    def produce(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.precision import repair, simulate

        budget = None
        if reduction.repair is not None:
            budget = repair.Budget(attempts=reduction.repair.attempts, max_share=reduction.repair.max_share)
        played = {"runnable": simulate.half} if reduction.calibration is None else {}
        return repair.reduce(
            exported.path,
            folder,
            make=lambda place, kept: _reduced(reduction, exported.path, place, kept, measured, progress),
            judge=lambda path: gate.verdict(run, variant, path),
            samples=measured or run.golden,
            budget=budget,
            progress=progress,
            **played,
        )

    assert variant.reduce is not None
    return _made(run, variant, variant.reduce, produce)


def _calibration(run: Run, variant: Variant, step: Step) -> GoldenSamples:
    found = run.plan.calibration_data(variant.key)
    assert found is not None
    assert variant.reduction is not None
    assert variant.reduction.calibration is not None
    (data, trained), settings, loaded = found, variant.reduction.calibration, run.plan.loaded
    owner = inheritance.owner(loaded.config.variants, variant.key, "calibration")
    with run.stage(step.name, variant.identifier) as stage:
        entry = run.step(
            step,
            stage,
            lambda folder: samples.make_calibration(
                data,
                run.golden,
                count=settings.samples,
                trained=trained,
                own=settings.from_ is not None,
                where=loaded.where("variants", owner, "calibration", "from"),
                signature=run.plan.signature,
                resolve=loaded.resolve,
                seed=loaded.train_seed,
                out_dir=folder,
            ),
        )
        stage.result = " · ".join([f"{entry.values['count']} samples", *entry.values["notes"]])
    run.note(variant, *entry.values["notes"])
    return samples.read(entry.directory / samples.FILE_NAME)


def _reduced(
    reduction: Reduction,
    source: Path,
    folder: Path,
    repaired: frozenset[str],
    measured: GoldenSamples | None,
    progress: Progress,
) -> Mapping[str, Any]:
    kept: dict[str, Any] = {"keep_ops": reduction.keep_ops, "keep_nodes": {*reduction.keep_nodes, *repaired}}
    if reduction.precision != "int8":
        from pipeline.precision import half

        return half.convert(source, folder, precision=reduction.precision, **kept)
    from pipeline.precision import int8

    assert measured is not None
    assert reduction.calibration is not None
    return int8.quantize(
        source,
        measured,
        folder,
        consumer=reduction.consumer,
        method=reduction.calibration.method,
        percentile=reduction.calibration.percentile,
        reduce_range=reduction.reduce_range,
        progress=progress,
        **kept,
    )


def _engine(run: Run, variant: Variant, engine: EnginePlan, graph: Artifact) -> Artifact | None:
    """The engine; None where it turns out that it cannot be built here, and the YAML allows that.

    Raises:
        MissingError: the YAML does not.
    """
    spec = replace(engine.spec, kept_nodes=tuple(graph.properties.get("kept", ())))

    def produce(folder: Path, progress: Progress) -> Mapping[str, Any]:
        from pipeline.formats.tensorrt import build

        return build.build(
            graph.path,
            spec,
            folder,
            timing_cache=run.store.root / TIMING_CACHES,
            log_path=run.directory / f"{variant.identifier}.engine.log",
            timeout_s=engine.timeout_s,
            progress=progress,
        )

    try:
        artifact = _made(run, variant, engine.step, produce)
    except UnavailableError as lack:
        if not engine.skip:
            raise
        run.update(variant, skipped=lack.found, artifact=None, parity=None, accuracy=None, cached=False)
        return None
    artifact = replace(artifact, size_bytes=_fleet_bytes(variant, artifact.path.parent))
    run.update(variant, artifact=artifact)
    if spec.flavour == "tensorrt" and run.plan.limits.tensorrt is None:
        run.note(
            variant,
            f"the TensorRT of Triton {run.plan.limits.release}'s container is not known here, and an engine loads only "
            f"in the TensorRT that built it: build it in {tensorrt_image(run.plan.limits)}",
        )
    if engine.obstacle:
        run.note(variant, f"built and inspected, not run: {engine.obstacle}; parity is that of its graph")
    return artifact


def _check_profiles(run: Run, variant: Variant, engine: EnginePlan) -> None:
    from pipeline.formats.tensorrt import profiles

    owner = inheritance.owner(run.plan.loaded.config.variants, variant.key, "engine")
    profiles.check(run.golden, engine.spec, run.plan.loaded.where("variants", owner, "engine", "profiles"))


def _fleet_bytes(variant: Variant, folder: Path) -> int:
    """Of all of a variant's engines, one for each compute capability."""
    assert variant.engine is not None
    return sum(files.size_bytes(folder / one.file_name) for one in variant.engine.spec.each)


def _made(run: Run, variant: Variant, step: Step, produce: Callable[[Path, Progress], Mapping[str, Any]]) -> Artifact:
    """Run a step that makes a file, or take it from the store; a step that this run has done already is not shown."""
    done = run.entries.get(step.name)
    if done is None:
        with run.stage(step.name, variant.identifier) as stage:
            entry = run.step(step, stage, lambda folder: produce(folder, stage.progress))
            stage.result = human_bytes(files.size_bytes(entry.directory / entry.values["file"]))
    else:
        entry = done
    path = entry.directory / entry.values["file"]
    artifact = Artifact(
        path=path,
        kind=variant.kind,
        sha256=files.sha256_tree(path),
        size_bytes=files.size_bytes(path),
        tool_versions=tool_versions(step.tools),
        notes=tuple(_relative(run, note) for note in entry.values["notes"]),
        properties=entry.values["properties"],
    )
    before = run.results[variant.key]
    run.update(variant, artifact=artifact, cached=entry.cached and (before.artifact is None or before.cached))
    if done is None:  # else its first variant has told
        run.note(variant, *artifact.notes)
        run.note_rebuilt(variant, step, entry)
    return artifact


def _relative(run: Run, note: str) -> str:
    """Paths of the user's code as the YAML would write them: a manifest must not tell where it was built."""
    return note.replace(f"{run.plan.loaded.path.parent.resolve()}/", "")
