"""The tables of formats, precisions, sources and servers: rows, the schema's unions and what rows name agree.

That rows of one table do not know each other is held here, by the tables: a new row is in no list of modules.
"""

from __future__ import annotations

import itertools
import pkgutil
from typing import get_args

import grimp
import pytest

from pipeline import servers
from pipeline.formats.table import FORMATS
from pipeline.precision.table import PRECISIONS
from pipeline.schema import Config
from pipeline.schema.model import Source
from pipeline.schema.variants import Format, Precision
from pipeline.servers.table import DEPLOYMENTS, SERVERS
from pipeline.sources.table import SOURCES

STEPS = sorted(
    {export.function for row in FORMATS.values() for export in row.exports.values()}
    | {row.judge for row in FORMATS.values() if row.judge}
    | {f"{row.module}:{name}" for row in SOURCES.values() for name in ("make", "opened")}
    | {f"{row.module}:{name}" for row in PRECISIONS.values() if row.module for name in ("make", "runnable", "opened")}
    | {name for row in SERVERS.values() for name in (row.variants, row.deployed, row.complete, row.prove) if name}
)
SERVER_FOLDERS = [item.name for item in pkgutil.iter_modules(servers.__path__) if item.ispkg]
NETWORKS = "pipeline.sources.library"
"""What gives networks by name, to the sources that put weights into one too."""


def test_every_name_that_the_schema_takes_has_a_row() -> None:
    assert set(FORMATS) == set(get_args(Format))
    assert set(PRECISIONS) == set(get_args(Precision))
    assert set(SOURCES) == set(Source.model_fields)
    assert len(SERVERS) == len(SERVER_FOLDERS)


@pytest.mark.parametrize("name", STEPS)
def test_what_a_row_names_is_there(name: str) -> None:
    assert callable(pkgutil.resolve_name(name))


def test_a_format_is_exported_and_judged_or_built_from_one_that_is() -> None:
    kinds = {row.kind for row in SOURCES.values()}
    for name, row in FORMATS.items():
        if row.built_from:
            assert FORMATS[row.built_from].judge, name
        else:
            assert row.judge, name
            assert row.refusal or kinds <= set(row.exports), name


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("pipeline", cache_dir=None)


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param([f"pipeline.formats.{name}" for name in FORMATS], id="formats"),
        pytest.param([f"pipeline.servers.{folder}" for folder in SERVER_FOLDERS], id="servers"),
        pytest.param(sorted({row.module for row in SOURCES.values()} - {NETWORKS}), id="sources"),
    ],
)
def test_rows_do_not_know_each_other(imports: grimp.ImportGraph, modules: list[str]) -> None:
    assert len(modules) > 3
    for one, other in itertools.permutations(modules, 2):
        assert imports.find_shortest_chain(one, other, as_packages=True) is None


def test_every_format_has_a_server_in_every_release() -> None:
    for name, row in FORMATS.items():
        for release in ("24.01", "99.12"):
            assert row.server(release) in SERVERS, name


def test_a_server_emits_what_it_serves_and_says_why_it_can_be_made_of_what_it_takes() -> None:
    for name, row in SERVERS.items():
        assert bool(row.deployed) == (row.deployment is not None), name
        assert row.variants or row.deployment, name
        assert row.prove or name == "triton", name
    for name, deployment in DEPLOYMENTS.items():
        assert deployment.takes, name
        assert set(deployment.takes) <= set(FORMATS), name
        assert bool(deployment.lone) == bool(deployment.misfit) == deployment.beside, name
        assert name in Config.model_fields or not deployment.beside, name
