"""Rules between TensorFlow and the rest: what can be made of a Keras model or a SavedModel, and where it is served."""

from __future__ import annotations

from pipeline.base.errors import ConfigError
from pipeline.config.explain import nearest
from pipeline.config.inheritance import inherited
from pipeline.config.subject import Found, Subject
from pipeline.machine.target import LAST_WITH_TENSORFLOW, limits


def batch(subject: Subject) -> Found:
    """Keras trains on batches."""
    keras = subject.config.source.keras
    if keras is not None and keras.train is not None and subject.batch is None:
        yield ("source", "keras", "train"), "Keras trains on batches: every input and output shape starts with a letter"


def tfserving(subject: Subject) -> Found:
    """The `tfserving` section names a SavedModel."""
    section = subject.config.tfserving
    if section is None:
        return
    served = _saved_models(subject)
    if section.from_ is not None and section.from_ not in subject.config.variants:
        yield ("tfserving", "from"), f"no variant is called `{section.from_}`; {nearest(section.from_, served)}"
    elif section.from_ is not None and section.from_ not in served:
        yield ("tfserving", "from"), f"expected a variant of format saved_model; `{section.from_}` is none"
    elif not served:
        yield (
            ("tfserving",),
            "TF-Serving serves SavedModels: add a variant such as `saved_model: {format: saved_model}`",
        )


def target(subject: Subject) -> Found:
    """A SavedModel has a server: Triton up to 25.02, TF-Serving after that."""
    try:
        release = limits(subject.config.triton.target).release
    except ConfigError:
        return  # reported where the target is
    if release <= LAST_WITH_TENSORFLOW:
        return
    section, names = subject.config.tfserving, _saved_models(subject)
    elsewhere = (section.from_ or next(iter(names), None)) if section is not None else None
    for name in names:
        if name != elsewhere:
            yield (
                ("variants", name),
                f"Triton {release} has no TensorFlow backend; {LAST_WITH_TENSORFLOW} was the last release with one: "
                "set a `triton.target` up to that, serve `format: onnx` in its place, or name this variant in a "
                "`tfserving` section, which takes it out of Triton's repository",
            )


def _saved_models(subject: Subject) -> list[str]:
    variants = subject.config.variants
    return [name for name in variants if inherited(variants, name, "format") == "saved_model"]
