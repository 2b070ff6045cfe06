"""What is made of variants: the ensemble, and what other servers take; servers/table.py says how."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan.subject import Subject
from pipeline.servers import table
from pipeline.servers.planned import DeploymentPlan, Variant
from pipeline.servers.server import Deployment, Settings


def resolve(subject: Subject, variants: Sequence[Variant], keys: tuple[str, ...]) -> tuple[DeploymentPlan, ...]:
    """What the YAML wants made, in the order of the table.

    Args:
        subject: the configuration.
        variants: all of them.
        keys: the variants wanted, empty for all; without its variant a deployment is not made.
    """
    config, batched = subject.loaded.config, subject.signature.batch is not None
    found = []
    for server, row in table.DEPLOYMENTS.items():
        if settings := row.settings(config, batched):
            variant = _variant(server, row, settings, variants)
            if not keys or variant.key in keys:
                found.append(_planned(subject, server, settings, variant))
    return tuple(found)


def _variant(server: str, row: Deployment, settings: Settings, variants: Sequence[Variant]) -> Variant:
    """The one that it is made of; there is one: config/deployment_checks.py, config/ensemble_checks.py."""
    if settings.from_ is not None:
        return next(one for one in variants if one.key == settings.from_)
    return next(one for one in variants if one.format in row.takes and (row.beside or one.server == server))


def _planned(subject: Subject, server: str, settings: Settings, variant: Variant) -> DeploymentPlan:
    row, config, environment = table.DEPLOYMENTS[server], subject.loaded.config, subject.environment
    return DeploymentPlan(
        identifier=table.identifier(config, server),
        model=config.name,
        server=server,
        format=row.format,
        root=subject.beside(server) if row.beside else variant.root,
        variant=variant,
        parts=tuple(f"{config.name}_{part}" for part in row.parts),
        settings=settings,
        max_batch_size=row.max_batch_size(settings, variant.max_batch_size),
        how=row.how.format(variant=variant.key, settings=settings),
        steps=row.steps(environment, subject.limits),
        lacking_to_make=row.lacks_to_make(environment),
        lacking_to_serve=row.lacks_to_serve(environment),
    )
