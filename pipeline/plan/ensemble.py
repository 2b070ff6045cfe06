"""The ensemble of a configuration: which variant answers, and for which Pythons it carries Pillow."""

from __future__ import annotations

import platform

from pipeline.plan.values import EnsemblePlan, PillowPlan, Subject, Variant
from pipeline.store import Step


def plan(subject: Subject, variants: tuple[Variant, ...], keys: tuple[str, ...]) -> EnsemblePlan | None:
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
                code=("repository/pillow.py",),
                parameters={"python": python, "machine": machine, "here": python == here},
                tools=("pillow",),
            ),
        )
        for python in pythons
    )
