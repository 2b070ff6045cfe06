"""What is made of variants: the ensemble, and what other servers take."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.step import Step
from pipeline.machine import doctor
from pipeline.plan.values import Subject, Variant

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PillowPlan:
    """Pillow for one Python that will run the ensemble's preprocessing.

    Attributes:
        python: ``3.10``.
        machine: processor architecture, ``x86_64``.
        step: the step that gets it.
        here: it is this interpreter's, and installed.
    """

    python: str
    machine: str
    step: Step
    here: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsemblePlan:
    """Image files in, labels out: a Triton model named as the YAML's model, and the two around the variant it asks.

    Attributes:
        name: its own, ``<name>``.
        variant: the one that answers.
        pillow: for the Python of the embedded server and, where that is known and another, of the target's container.
    """

    name: str
    variant: Variant
    pillow: tuple[PillowPlan, ...]

    @property
    def key(self) -> str:
        """Its row in the report."""
        return self.name

    @property
    def identifier(self) -> str:
        """Its Triton model name."""
        return self.name

    @property
    def format(self) -> str:
        """The kind of deployment."""
        return "ensemble"

    @property
    def precision(self) -> str:
        """Of the variant that answers."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "triton"

    @property
    def max_batch_size(self) -> int:
        """The variant's."""
        return self.variant.max_batch_size

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"image file → {self.variant.key} → labels"

    @property
    def root(self) -> Path:
        """The variant's: an ensemble and its members stand in one repository."""
        return self.variant.root

    @property
    def published(self) -> tuple[str, ...]:
        """The ensemble last, when there is what it asks."""
        before, _, after = self.models
        return (before, after, self.name)

    @property
    def models(self) -> tuple[str, str, str]:
        """What it asks, in order: preprocessing, the variant, postprocessing."""
        return (f"{self.name}_preprocess", self.variant.identifier, f"{self.name}_postprocess")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchServePlan:
    """A variant's file as an archive for TorchServe.

    Attributes:
        identifier: ``<name>.torchserve``.
        model: its name in TorchServe, the YAML's.
        root: the model stores, beside Triton's repository.
        variant: whose file it is.
        batch_size: most requests in one forward pass.
        max_batch_delay_ms: how long the first request of a batch waits for others.
        workers: processes that serve it.
        response_timeout_s: a worker that takes longer is restarted.
        lacking_to_make: what this machine lacks to make the archive, each with its remedy.
        lacking_to_serve: what it lacks to prove it; without a proof that does not matter.
    """

    identifier: str
    model: str
    root: Path
    variant: Variant
    batch_size: int
    max_batch_delay_ms: int
    workers: int
    response_timeout_s: int
    lacking_to_make: tuple[str, ...]
    lacking_to_serve: tuple[str, ...]

    @property
    def key(self) -> str:
        """No variant's."""
        return self.identifier

    @property
    def published(self) -> tuple[str, ...]:
        """Its own folder."""
        return (self.model,)

    @property
    def format(self) -> str:
        """TorchServe's archive format."""
        return "mar"

    @property
    def precision(self) -> str:
        """The variant's."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "torchserve"

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"from {self.variant.key}, workers {self.workers}"

    @property
    def max_batch_size(self) -> int:
        """Most requests in one forward pass."""
        return self.batch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class TfServingPlan:
    """A SavedModel in a tree that TensorFlow Serving serves.

    Attributes:
        identifier: ``<name>.tfserving``.
        model: the YAML's ``name``: the model's folder in the tree, and its name there.
        variant: the SavedModel.
        root: the tree, beside Triton's repository.
    """

    identifier: str
    model: str
    variant: Variant
    root: Path

    @property
    def key(self) -> str:
        """Its own identifier."""
        return self.identifier

    @property
    def published(self) -> tuple[str, ...]:
        """Its own folder."""
        return (self.model,)

    @property
    def format(self) -> str:
        """What TF-Serving serves."""
        return "saved_model"

    @property
    def precision(self) -> str:
        """The variant's."""
        return self.variant.precision

    @property
    def server(self) -> str:
        """What serves it."""
        return "tfserving"

    @property
    def max_batch_size(self) -> int:
        """The variant's."""
        return self.variant.max_batch_size

    @property
    def how(self) -> str:
        """In words, for the plan."""
        return f"from {self.variant.key}"


def ensemble(subject: Subject, variants: Sequence[Variant], keys: tuple[str, ...]) -> EnsemblePlan | None:
    """The ensemble, where the YAML says how images become the input and scores become labels.

    Args:
        subject: the configuration.
        variants: all of them.
        keys: the variants wanted, empty for all; without the one that answers there is no ensemble.
    """
    config = subject.loaded.config
    if config.preprocess is None or config.postprocess is None:
        return None
    named = config.ensemble.from_ if config.ensemble else None
    # config/ensemble_checks.py: there is one, and it is batched
    chosen = next(
        item
        for item in variants
        if item.key == named or (named is None and item.engine is None and item.server == "triton")
    )
    if keys and chosen.key not in keys:
        return None
    return EnsemblePlan(name=config.name, variant=chosen, pillow=_pillow(subject))


def _pillow(subject: Subject) -> tuple[PillowPlan, ...]:
    here = ".".join(subject.environment.python_version.split(".")[:2])
    pythons = dict.fromkeys(one for one in (here, subject.limits.python) if one)
    machine = platform.machine()
    return tuple(
        PillowPlan(
            python=python,
            machine=machine,
            here=python == here,
            step=Step(
                name=f"pillow[{python}]",
                function="pipeline.servers.triton.pillow:make",
                arguments={"python": python, "machine": machine, "here": python == here},
                tools=("pillow",),
            ),
        )
        for python in pythons
    )


def torchserve(subject: Subject, variants: Sequence[Variant], keys: tuple[str, ...]) -> TorchServePlan | None:
    """The archive for TorchServe, where the YAML has one.

    Args:
        subject: the configuration.
        variants: all of them.
        keys: the variants wanted, empty for all; without the one it is made from there is no archive.
    """
    config = subject.loaded.config
    section = config.torchserve
    if section is None:
        return None
    scripts = [variant for variant in variants if variant.format == "torchscript"]
    source = next((variant for variant in scripts if section.from_ in (None, variant.key)), None)
    if source is None or (keys and source.key not in keys):
        return None
    return TorchServePlan(
        identifier=f"{config.name}.torchserve",
        model=config.name,
        root=subject.beside("torchserve"),
        variant=source,
        batch_size=section.batch_size or (DEFAULT_BATCH_SIZE if subject.signature.batch else 1),
        max_batch_delay_ms=section.max_batch_delay_ms,
        workers=section.workers,
        response_timeout_s=section.response_timeout_s,
        lacking_to_make=doctor.lacks_to_archive(subject.environment),
        lacking_to_serve=doctor.lacks_to_serve_torchserve(subject.environment),
    )


def tfserving(subject: Subject, variants: Sequence[Variant], keys: tuple[str, ...]) -> TfServingPlan | None:
    """The tree for TF-Serving, where the YAML has one.

    Args:
        subject: the configuration.
        variants: all of them.
        keys: the variants wanted, empty for all; without the one it holds there is no tree.
    """
    name, section = subject.loaded.config.name, subject.loaded.config.tfserving
    if section is None:
        return None
    served = next(item for item in variants if section.from_ in (None, item.key) and item.format == "saved_model")
    if keys and served.key not in keys:
        return None
    return TfServingPlan(identifier=f"{name}.tfserving", model=name, variant=served, root=subject.beside("tfserving"))
