"""Triton: variants as they are, and the ensemble around one, which takes image files and answers with labels."""

from __future__ import annotations

import platform

from pipeline.base.step import Step
from pipeline.formats.table import FORMATS
from pipeline.machine.environment import Environment
from pipeline.machine.target import Limits
from pipeline.schema import Config
from pipeline.schema.images import Ensemble
from pipeline.servers.server import Deployment, Server


def _settings(config: Config, batched: bool) -> Ensemble | None:
    if config.preprocess is None or config.postprocess is None:
        return None
    return config.ensemble or Ensemble()


def _pillow(environment: Environment, limits: Limits) -> tuple[Step, ...]:
    """Pillow for the Python of the embedded server and, where that is known and another, of the target's container."""
    here, machine = ".".join(environment.python_version.split(".")[:2]), platform.machine()
    return tuple(
        Step(
            name=f"pillow[{python}]",
            function="pipeline.servers.triton.pillow:make",
            arguments={"python": python, "machine": machine, "here": python == here},
            tools=("pillow",),
        )
        for python in dict.fromkeys(one for one in (here, limits.python) if one)
    )


SERVER = Server(
    variants="pipeline.servers.triton.emission:variant",
    deployment=Deployment(
        settings=_settings,
        takes=tuple(name for name, row in FORMATS.items() if row.backends and not row.on_gpu),
        format="ensemble",
        beside=False,
        parts=("preprocess", "postprocess"),
        how="image file → {variant} → labels",
        steps=_pillow,
        unmade="ensemble[{identifier}]: the variant that answers in it was not made",
    ),
    deployed="pipeline.servers.triton.emission:ensemble",
)
