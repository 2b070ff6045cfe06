"""The YAML's variants, resolved: what each inherits, how its file is made, and the steps that make and judge it."""

from __future__ import annotations

from dataclasses import replace

from pipeline.base.errors import ConfigError
from pipeline.base.values import Format
from pipeline.machine.target import LAST_WITH_TENSORFLOW
from pipeline.plan import engines, settings, steps
from pipeline.plan.inheritance import chain, inherited
from pipeline.plan.values import Precision, Subject, Variant
from pipeline.proof import comparison


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
    maker = list(chain(variants, key))[-1]
    model_format = inherited(variants, key, "format")
    gates = variant.gates or config.gates
    precision: Precision = inherited(variants, key, "precision") or "fp32"
    tolerance = replace(comparison.default_tolerance(precision), **gates.parity.model_dump(exclude_none=True))
    max_batch_size = settings.max_batch_size(subject, variant)
    export = steps.export(subject, maker)
    reduction = steps.reduction(subject, key, precision, model_format)
    calibration = steps.calibration(subject, key, identifier, reduction)
    judging = steps.judging(max_batch_size, tolerance, gates.accuracy, precision, reduction)
    reduce = steps.reduce(subject, identifier, reduction, export, calibration, judging)
    graph = reduce or export
    engine = engines.plan(subject, key, precision, graph, judging) if model_format == "tensorrt" else None
    return Variant(
        identifier=identifier,
        key=key,
        format=model_format,
        kind=engine.spec.flavour if engine else "torchscript" if model_format == "libtorch" else model_format,
        precision=precision,
        server=_server(model_format, subject.limits.release),
        root=subject.beside("libtorch") if model_format == "libtorch" else subject.repository,
        parent=maker,
        options=steps.options(variants[maker], config.source, subject.limits),
        reduction=reduction,
        engine=engine,
        max_batch_size=max_batch_size,
        fields=settings.fields(subject, variant, engine=engine is not None),
        tolerance=tolerance,
        accuracy_gate=gates.accuracy,
        export=export,
        calibration=calibration,
        reduce=reduce,
        parity=steps.parity(identifier, graph, subject.samples, judging),
    )


def _server(model_format: Format, release: str) -> str:
    """What serves a format; config/tensorflow_checks.py has seen to it that there is such a thing."""
    if model_format == "libtorch":
        return "none"  # a program serves itself
    return "tfserving" if model_format == "saved_model" and release > LAST_WITH_TENSORFLOW else "triton"
