"""TorchServe: a torchscript variant as an archive in a model store."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.machine import doctor
from pipeline.schema import Config
from pipeline.schema.torchserve import TorchServe
from pipeline.servers.server import Deployment, Server, Settings

DEFAULT_BATCH_SIZE = 8


def _settings(config: Config, batched: bool) -> TorchServe | None:
    section = config.torchserve
    if section is None:
        return None
    default = DEFAULT_BATCH_SIZE if batched else 1
    return section.model_copy(update={"batch_size": section.batch_size or default})


def batch_size(settings: Settings, limit: int) -> int:
    """Most requests in one forward pass."""
    assert isinstance(settings, TorchServe)
    assert settings.batch_size is not None
    return settings.batch_size


def _problems(config: Config, batched: bool) -> Iterator[tuple[str, str]]:
    found = _settings(config, batched)
    if found is not None and not batched and found.batch_size != 1:
        yield (
            "batch_size",
            "expected 1: the model has no batch dimension (its shapes do not all start with the same letter)",
        )


SERVER = Server(
    deployment=Deployment(
        settings=_settings,
        takes=("torchscript",),
        format="mar",
        max_batch_size=batch_size,
        how="from {variant}, workers {settings.workers}",
        lacks_to_make=doctor.lacks_to_archive,
        lacks_to_serve=doctor.lacks_to_serve_torchserve,
        unmade="torchserve[{identifier}]: {variant} was not made",
        lone="TorchServe runs TorchScript: expected a variant of `format: torchscript`",
        misfit="expected a torchscript variant; `{name}` is {format}",
        problems=_problems,
    ),
    deployed="pipeline.servers.torchserve.deployment:archive",
    launches=True,
    prove="pipeline.servers.torchserve.deployment:launched",
)
