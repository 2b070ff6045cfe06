"""The YAML's variants, resolved: what each inherits, how its file is made, and the steps that make and judge it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.base.errors import ConfigError
from pipeline.config.inheritance import chain, inherited
from pipeline.formats.table import BACKENDS, FORMATS
from pipeline.machine.target import CONTAINER_BACKENDS
from pipeline.plan import engines, settings, steps
from pipeline.plan.subject import Subject
from pipeline.precision.table import PRECISIONS
from pipeline.proof import parity
from pipeline.schema.variants import Precision
from pipeline.servers.planned import Variant
from pipeline.servers.table import SERVERS


def resolve(subject: Subject) -> tuple[Variant, ...]:
    """All variants, in the YAML's order.

    Raises:
        ConfigError: an engine's profiles contradict the model, or its flavour cannot do what is asked.
    """
    found = (problem for key in subject.loaded.config.variants for problem in engines.problems(subject, key))
    problems = tuple(dict.fromkeys(found))  # an engine that two variants inherit is wrong once
    if problems:
        raise ConfigError("config: engines cannot be built as asked; nothing was built", problems=problems)
    return tuple(_variant(subject, key) for key in subject.loaded.config.variants)


def _variant(subject: Subject, key: str) -> Variant:
    config = subject.loaded.config
    variants, variant = config.variants, config.variants[key]
    identifier = f"{config.name}_{key}"
    maker = chain(variants, key)[-1]
    model_format = inherited(variants, key, "format")
    row, made = FORMATS[model_format], FORMATS[inherited(variants, maker, "format")]
    gates = variant.gates or config.gates
    precision: Precision = inherited(variants, key, "precision") or "fp32"
    tolerance = replace(PRECISIONS[precision].tolerance, **gates.parity.model_dump(exclude_none=True))
    max_batch_size = settings.max_batch_size(subject, variant)
    export = steps.export(subject, maker)
    reduction = steps.reduction(subject, key, precision, row.consumer)
    calibration = steps.calibration(subject, key, identifier, reduction)
    limits = parity.Gates(max_batch_size=max_batch_size, tolerance=tolerance, accuracy=gates.limits)
    judging = steps.judging(subject, limits, reduction)
    reduce = steps.reduce(subject, identifier, reduction, export, calibration, judging)
    graph = reduce or export
    engine = engines.plan(subject, key, precision, graph, judging) if row.engine else None
    kind, server = engine.spec.flavour if engine else row.kind, row.server(subject.limits.release)
    return Variant(
        identifier=identifier,
        key=key,
        format=model_format,
        kind=kind,
        precision=precision,
        server=server,
        root=_root(subject, model_format, kind),
        published=(identifier,) if SERVERS[server].variants else (),
        parent=maker,
        options=steps.options(subject, maker),
        reduction=reduction,
        engine=engine,
        max_batch_size=max_batch_size,
        fields=settings.fields(subject, variant, engine=engine is not None),
        tolerance=tolerance,
        export=export,
        calibration=calibration,
        reduce=reduce,
        parity=steps.judge(identifier, made.judge, reduction, graph, subject.samples, judging),
    )


def _root(subject: Subject, model_format: str, kind: str) -> Path:
    """The repository that a variant goes to: the main one holds what a stock container of the target loads."""
    if not FORMATS[model_format].backends:
        return subject.beside(model_format)
    backend = BACKENDS[kind].name
    return subject.repository if backend in CONTAINER_BACKENDS else subject.beside(backend)
