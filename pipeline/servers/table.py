"""The servers: what serves what a build makes. A new one is a folder beside this file, and a row here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.schema import Config
from pipeline.servers.libtorch import row as libtorch
from pipeline.servers.server import Deployment, Server
from pipeline.servers.tfserving import row as tfserving
from pipeline.servers.torchserve import row as torchserve
from pipeline.servers.triton import row as triton

SERVERS: Mapping[str, Server] = {
    "triton": triton.SERVER,
    "torchserve": torchserve.SERVER,
    "tfserving": tfserving.SERVER,
    "none": libtorch.SERVER,
}
"""By the report's word; a program serves itself."""

DEPLOYMENTS: Mapping[str, Deployment] = {name: row.deployment for name, row in SERVERS.items() if row.deployment}
"""What is made of variants, by the server it is for."""


def identifier(config: Config, server: str) -> str:
    """What the report calls a deployment: the model's own name, or that and the server's."""
    return f"{config.name}.{server}" if DEPLOYMENTS[server].beside else config.name


def names(config: Config) -> Iterator[str]:
    """Everything that is made of a configuration and has a name of its own."""
    yield from (f"{config.name}_{key}" for key in config.variants)
    for server, row in DEPLOYMENTS.items():
        if row.settings(config, True):
            yield identifier(config, server)
            yield from (f"{config.name}_{part}" for part in row.parts)
