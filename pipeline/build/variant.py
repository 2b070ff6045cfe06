"""The variants of a build: the steps that make each, side by side, and their verdicts; nothing is emitted here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import MissingError, StageError
from pipeline.base.step import Made, Step, tool_versions
from pipeline.base.values import Artifact
from pipeline.build import gate, source_gate
from pipeline.build.run import Run
from pipeline.build.steps import Steps, side_by_side
from pipeline.config import inheritance
from pipeline.formats.tensorrt.failures import UnavailableError
from pipeline.machine.target import tensorrt_image
from pipeline.plan import EnginePlan, Variant
from pipeline.report.units import human_bytes


def wanted(run: Run) -> list[Variant]:
    """The variants that can be made; the others' failures are kept to their rows. The golden samples are done."""
    found = []
    for variant in run.plan.variants:
        with run.guarded(variant, "build"):
            if variant.engine is None or _buildable(run, variant, variant.engine):
                source_gate.check_least(run, variant)
                found.append(variant)
    return found


def owners(variants: list[Variant]) -> dict[str, str]:
    """Whose log a step writes to: that of the first variant it is for, by the step's name."""
    return {step.name: variant.identifier for variant in reversed(variants) for step in variant.steps}


def make(run: Run, steps: Steps, variants: list[Variant], stop: Callable[[], None]) -> None:
    """Make and judge variants side by side; the failure of one is kept to it.

    Args:
        run: the books; source and golden samples are done.
        steps: gets the steps done.
        variants: the wanted ones.
        stop: ends what is running.
    """
    side_by_side([partial(_make, run, steps, variant) for variant in variants], stop)
    for variant in variants:
        with run.guarded(variant, "build"):
            _check_ancestors(run, variant)


def _check_ancestors(run: Run, variant: Variant) -> None:
    """What is made of a refused file is refused too, whatever its own gates allow.

    Raises:
        StageError: a variant that this one is made from failed, in this build.
    """
    config, key = run.plan.loaded.config.variants, variant.key
    while not run.results[variant.key].error and (parent := config[key].from_):
        if parent in run.results and run.results[parent].error:
            raise StageError(
                f"{variant.identifier}: not published, because {run.results[parent].identifier}, which it is made "
                "from, was refused",
                where=run.plan.loaded.where("variants", key, "from"),
                hint="see the error of that variant",
            )
        key = parent


def _buildable(run: Run, variant: Variant, engine: EnginePlan) -> bool:
    """Whether an engine can be built here; where the YAML allows that it cannot, that is noted.

    Raises:
        MissingError: it cannot, and must.
        StageError: its profiles do not take the golden samples.
    """
    if not engine.lacking:
        _check_profiles(run, variant, engine)
        return True
    found = "\n".join(engine.lacking)
    if not engine.skip:
        raise MissingError(
            f"engine[{variant.identifier}]: this machine cannot build it",
            found=found,
            where=run.plan.loaded.where("variants", variant.key, "engine"),
            hint="install what is missing, or say `when_unavailable: skip`",
        )
    run.update(variant, skipped=found)
    return False


def _check_profiles(run: Run, variant: Variant, engine: EnginePlan) -> None:
    from pipeline.formats.tensorrt import profiles

    owner = inheritance.owner(run.plan.loaded.config.variants, variant.key, "engine")
    profiles.check(run.golden, engine.spec, run.plan.loaded.where("variants", owner, "engine", "profiles"))


# ---- steps --------------------------------------------------------------------------------------------------------


def _make(run: Run, steps: Steps, variant: Variant) -> None:
    with run.guarded(variant, "build"):
        _file(run, steps, variant, variant.export)
        if variant.calibration is not None:
            run.note(variant, *steps.get(variant.calibration, samples_summary).notes)
        if variant.reduce is not None:
            _file(run, steps, variant, variant.reduce)
        _judge(run, steps, variant, variant.parity)
        if variant.engine is not None and _engine(run, steps, variant, variant.engine) and variant.engine.parity:
            _judge(run, steps, variant, variant.engine.parity)


def _file(run: Run, steps: Steps, variant: Variant, step: Step) -> Artifact:
    """A step that makes a file; what several variants share is told by the first."""
    made = steps.get(step, lambda made: human_bytes(files.size_bytes(made.path)))
    artifact = Artifact(
        path=made.path,
        kind=variant.kind,
        sha256=files.sha256_tree(made.path),
        size_bytes=files.size_bytes(made.path),
        tool_versions=tool_versions(step.tools),
        notes=tuple(_relative(run, note) for note in made.notes),
        properties=made.values,
    )
    before = run.results[variant.key]
    run.update(variant, artifact=artifact, cached=made.cached and (before.artifact is None or before.cached))
    if steps.owners[step.name] == variant.identifier:
        run.note(variant, *artifact.notes)
        run.note_rebuilt(variant, step, made)
    return artifact


def _relative(run: Run, note: str) -> str:
    """Paths of the user's code as the YAML would write them: a manifest must not tell where it was built."""
    return note.replace(f"{run.plan.loaded.path.parent.resolve()}/", "")


def samples_summary(made: Made) -> str:
    """For the end of the line of a step that chooses samples."""
    return " · ".join([f"{made.values['count']} samples", *made.notes])


def _judge(run: Run, steps: Steps, variant: Variant, step: Step) -> None:
    """In-process parity and accuracy of a graph or an engine, and the gates; an engine's replace its graph's.

    Raises:
        GateError: the numbers are refused; they are kept in the result.
    """
    made = steps.get(step, gate.summary)
    found, cached = gate.judgement(made), run.results[variant.key].cached and made.cached
    run.update(variant, parity=found.parity, accuracy=found.accuracy, cached=cached)
    run.note_rebuilt(variant, step, made)
    gate.check(step.name, found, run.plan.loaded.where("variants", variant.key))


def _engine(run: Run, steps: Steps, variant: Variant, engine: EnginePlan) -> bool:
    """Make the engine; False where it turns out that it cannot be built here, and the YAML allows that.

    Raises:
        MissingError: the YAML does not.
    """
    try:
        artifact = _file(run, steps, variant, engine.step)
    except UnavailableError as lack:
        if not engine.skip:
            raise
        run.update(variant, skipped=lack.found, artifact=None, parity=None, accuracy=None, cached=False)
        return False
    run.update(variant, artifact=replace(artifact, size_bytes=_fleet_bytes(variant, artifact.path.parent)))
    if engine.spec.flavour == "tensorrt" and run.plan.limits.tensorrt is None:
        run.note(
            variant,
            f"the TensorRT of Triton {run.plan.limits.release}'s container is not known here, and an engine loads only "
            f"in the TensorRT that built it: build it in {tensorrt_image(run.plan.limits)}",
        )
    if engine.obstacle:
        run.note(variant, f"built and inspected, not run: {engine.obstacle}; parity is that of its graph")
    return True


def _fleet_bytes(variant: Variant, folder: Path) -> int:
    """Of all of a variant's engines, one for each compute capability."""
    assert variant.engine is not None
    return sum(files.size_bytes(folder / one.file_name) for one in variant.engine.spec.each)
