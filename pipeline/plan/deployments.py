"""What is made of variants: the ensemble, and what other servers take."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.step import Step
from pipeline.machine import doctor
from pipeline.plan.values import EnsemblePlan, PillowPlan, Subject, TfServingPlan, TorchServePlan, Variant

DEFAULT_BATCH_SIZE = 8


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
        variant=source,
        batch_size=section.batch_size or (DEFAULT_BATCH_SIZE if subject.signature.batch else 1),
        max_batch_delay_ms=section.max_batch_delay_ms,
        workers=section.workers,
        response_timeout_s=section.response_timeout_s,
        lacking_to_make=doctor.lacks_to_archive(subject.environment),
        lacking_to_serve=doctor.lacks_to_serve_torchserve(subject.environment),
    )


def tfserving(
    subject: Subject, variants: Sequence[Variant], keys: tuple[str, ...], repository: Path
) -> TfServingPlan | None:
    """The tree for TF-Serving, where the YAML has one.

    Args:
        subject: the configuration.
        variants: all of them.
        keys: the variants wanted, empty for all; without the one it holds there is no tree.
        repository: Triton's, which the tree stands beside.
    """
    name, section = subject.loaded.config.name, subject.loaded.config.tfserving
    if section is None:
        return None
    served = next(item for item in variants if section.from_ in (None, item.key) and item.format == "saved_model")
    if keys and served.key not in keys:
        return None
    root = repository.with_name(f"{repository.name}.tfserving")
    return TfServingPlan(identifier=f"{name}.tfserving", model=name, variant=served, root=root)
