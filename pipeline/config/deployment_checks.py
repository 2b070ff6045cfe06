"""Rules between what is served and the variants it is made of; the table of servers says what each takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from pipeline.base.errors import ConfigError
from pipeline.config.document import Key
from pipeline.config.explain import nearest
from pipeline.config.subject import Found, Subject
from pipeline.formats.table import FORMATS
from pipeline.machine.target import LAST_WITH_TENSORFLOW, limits
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
    formats = subject.formats
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


def saved_models(subject: Subject) -> Found:
    """A SavedModel has a server: Triton as long as that has the backend, TF-Serving after that."""
    try:
        release = limits(subject.config.triton.target).release
    except ConfigError:
        return  # reported where the target is
    if release <= LAST_WITH_TENSORFLOW:
        return
    section, names = subject.config.tfserving, subject.of_format("saved_model")
    elsewhere = (section.from_ or next(iter(names), None)) if section is not None else None
    message = (
        f"Triton {release} has no TensorFlow backend; {LAST_WITH_TENSORFLOW} was the last release with one: "
        "set a `triton.target` up to that, serve `format: onnx` in its place, or name this variant in a "
        "`tfserving` section, which takes it out of Triton's repository"
    )
    yield from ((("variants", name), message) for name in names if name != elsewhere)


def programs(subject: Subject) -> Found:
    """A program is made from image files to labels, is nobody's parent, and is no Triton model."""
    config, variants = subject.config, subject.config.variants
    made = {name: variant.format for name, variant in variants.items() if variant.format}
    names = {name for name, kind in made.items() if not FORMATS[kind].backends}
    if config.ensemble is not None and config.ensemble.from_ in names:
        yield ("ensemble", "from"), f"`{config.ensemble.from_}` is a program, which Triton does not serve"
    for name, variant in variants.items():
        if variant.from_ in names:
            made_from = variants[variant.from_].from_
            yield ("variants", name, "from"), f"`{variant.from_}` is a program; expected its model, `{made_from}`"
    lacking = [section for section in ("preprocess", "postprocess") if getattr(config, section) is None]
    for name in sorted(names):
        key: Key = ("variants", name)
        if lacking:
            needs = f"a {made[name]} program takes image files and answers with labels"
            yield (*key, "format"), f"{needs}: the YAML lacks {' and '.join(lacking)}"
        if variants[name].triton:
            yield (*key, "triton"), f"not to be set here: Triton does not serve a {made[name]} program"
