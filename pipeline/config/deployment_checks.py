"""Rules between deployments and the variants they are made of; the table of servers says what each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pipeline.config.explain import nearest
from pipeline.config.inheritance import inherited
from pipeline.config.subject import Found, Subject
from pipeline.servers.server import Deployment
from pipeline.servers.table import DEPLOYMENTS


def each() -> Iterator[tuple[Callable[[Subject], Found], tuple[str, ...]]]:
    """The rules of every section that is called as its server, with the sections of the YAML that they read."""
    for server, row in DEPLOYMENTS.items():
        if row.lone:
            yield partial(_sources, server, row), ("variants", server)
        if row.problems is not None:
            yield partial(_problems, server, row), ("inputs", "outputs", server)


def _sources(server: str, row: Deployment, subject: Subject) -> Found:
    """It is made of a variant of the right format."""
    settings = row.settings(subject.config, True)
    if settings is None:
        return
    formats = {key: inherited(subject.variants, key, "format") for key in subject.config.variants}
    fitting, named = [key for key, made in formats.items() if made in row.takes], settings.from_
    if named is None and not fitting:
        yield (server,), row.lone
    elif named is not None and named not in formats:
        yield (server, "from"), f"no variant is called `{named}`; {nearest(named, fitting)}"
    elif named is not None and formats[named] not in (*row.takes, None):  # None is told elsewhere
        yield (server, "from"), row.misfit.format(name=named, format=formats[named])


def _problems(server: str, row: Deployment, subject: Subject) -> Found:
    assert row.problems is not None
    for key, message in row.problems(subject.config, subject.batch is not None):
        yield (server, key), message
