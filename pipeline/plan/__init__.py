"""Config + what the sources depend on -> BuildPlan. Pure: reads no files, runs nothing, imports no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.base import signatures
from pipeline.base.errors import ConfigError
from pipeline.base.step import Step
from pipeline.base.store import TIMING_CACHES
from pipeline.base.values import Signature
from pipeline.config.load import LoadedConfig
from pipeline.config.subject import signature_of
from pipeline.data import images
from pipeline.machine import doctor
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits, limits
from pipeline.plan import deployments, steps
from pipeline.plan.steps import calibration_data
from pipeline.plan.subject import Subject
from pipeline.plan.variants import resolve
from pipeline.schema.model import Input, Output
from pipeline.servers.planned import DeploymentPlan, EnginePlan, Reduction, Row, Variant
from pipeline.sources import table as sources

__all__ = [
    "BuildPlan",
    "Dependencies",
    "DeploymentPlan",
    "EnginePlan",
    "Reduction",
    "Row",
    "Variant",
    "calibration_data",
    "make",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """Everything a build will do, decided before it starts.

    Attributes:
        signature: with the labels the YAML knows; ``labels: source`` stays empty until the source is there.
        repository: where models go that a stock container of the target loads; see ``roots``.
        source: the step that makes the model.
        samples: the step that makes the golden samples.
        deployments: what is made of variants.
        missing_to_build: what this machine lacks to make the model, each with its remedy.
        missing_to_serve: what it lacks to serve it.
    """

    loaded: LoadedConfig
    signature: Signature
    limits: Limits
    source: Step
    samples: Step
    variants: tuple[Variant, ...]
    repository: Path
    work_dir: Path
    missing_to_build: tuple[str, ...]
    missing_to_serve: tuple[str, ...]
    deployments: tuple[DeploymentPlan, ...] = ()

    @property
    def roots(self) -> tuple[Path, Path]:
        """Triton's repositories: the main one, and that of TensorRT-RTX, which no container has a backend for."""
        return (self.repository, self.repository.with_name(f"{self.repository.name}.tensorrt_rtx"))

    @property
    def rows(self) -> tuple[Row, ...]:
        """Everything that has a line in the report: the variants, then the deployments made of them."""
        return (*self.variants, *self.deployments)

    @property
    def missing_for_deployments(self) -> tuple[str, ...]:
        """What this machine lacks for them; only their own rows fail."""
        return tuple(f"{row.identifier}: {lack}" for row in self.deployments for lack in row.lacking_to_serve)

    @property
    def missing_for_engines(self) -> tuple[str, ...]:
        """What this machine lacks to build the engines asked for; only their variants fail, or are skipped."""
        rows = [
            f"{variant.identifier}: {lack}" + (" (skipped)" if variant.engine.skip else "")
            for variant in self.variants
            if variant.engine
            for lack in variant.engine.lacking
        ]
        return tuple(rows)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All cached steps, in order, each once."""
        rows = [self.source, self.samples]
        for variant in self.variants:
            rows += [step for step in variant.steps if step not in rows]
        return (*rows, *(step for row in self.deployments for step in row.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What the source and the samples read, found by their rooms: file digests and distribution names.

    Attributes:
        calibration_digests: by the key of each int8 variant.
    """

    source_digests: Mapping[str, str]
    source_tools: tuple[str, ...]
    samples_digests: Mapping[str, str]
    calibration_digests: Mapping[str, Mapping[str, str]]


def make(
    loaded: LoadedConfig,
    dependencies: Dependencies,
    environment: Environment,
    *,
    repository: Path,
    work_dir: Path,
    keys: tuple[str, ...] = (),
) -> BuildPlan:
    """Resolve every option and name every step; ``keys`` are those of the variants wanted, empty for all.

    Raises:
        ConfigError: the target release, or one of ``keys``, is unknown.
    """
    config = loaded.config
    if unknown := [key for key in keys if key not in config.variants]:
        raise ConfigError(
            f"no variant is called {', '.join(unknown)}", found=f"the YAML has {', '.join(config.variants)}"
        )
    model_signature = signature(config.inputs, config.outputs, loaded)
    target = limits(config.triton.target)
    source = steps.source(loaded, model_signature, dependencies.source_digests, dependencies.source_tools)
    samples = steps.samples(loaded, model_signature, dependencies.samples_digests, source)
    subject = Subject(
        loaded=loaded,
        signature=model_signature,
        limits=target,
        environment=environment,
        source=source,
        samples=samples,
        calibration_digests=dependencies.calibration_digests,
        timing_cache=(work_dir / "store" / TIMING_CACHES).absolute(),
        repository=repository,
    )
    variants = resolve(subject)
    lacks = sources.of(config.source).lacks(environment)
    return BuildPlan(
        loaded=loaded,
        signature=model_signature,
        limits=target,
        source=source,
        samples=samples,
        variants=tuple(variant for variant in variants if not keys or variant.key in keys),
        deployments=deployments.resolve(subject, variants, keys),
        repository=repository,
        work_dir=work_dir,
        missing_to_build=(*doctor.lacks_to_build(environment, _libraries(loaded)), *lacks),
        missing_to_serve=doctor.lacks_to_serve(environment, container=config.serve.engine == "container"),
    )


def signature(inputs: Mapping[str, Input], outputs: Mapping[str, Output], loaded: LoadedConfig) -> Signature:
    """The YAML's tensors as values, with the labels that the YAML or a file lists."""
    found = signature_of(inputs, outputs, {name: _labels(spec.labels, loaded) for name, spec in outputs.items()})
    section = loaded.config.preprocess
    return replace(found, image=images.of_section(section, found)) if section else found


def _labels(labels: str | tuple[str, ...] | None, loaded: LoadedConfig) -> tuple[str, ...]:
    if labels is None or labels == "source":
        return ()
    if labels == "digits":
        return images.DIGIT_LABELS
    if isinstance(labels, str):
        return tuple(loaded.resolve(labels).read_text(encoding="utf-8").splitlines())
    return labels


def with_source_labels(plan: BuildPlan, labels: tuple[str, ...]) -> Signature:
    """The plan's signature with ``labels: source`` filled in by what the source says."""
    wanted = {name for name, spec in plan.loaded.config.outputs.items() if spec.labels == "source"}
    return signatures.labelled(plan.signature, wanted, labels)


def _libraries(loaded: LoadedConfig) -> tuple[str, ...]:
    source = loaded.config.source
    datasets = [loaded.train_data, loaded.samples_data]
    names = {source.built.library} if source.built and source.built.library else set()
    if any(data and data.dataset in ("mnist", "cifar10") for data in datasets):
        names.add("torchvision")
    return tuple(sorted(names))
