"""Rules between TensorFlow and the rest: what can be made of a Keras model or a SavedModel, and where it is served."""

from __future__ import annotations

from pipeline.base.errors import ConfigError
from pipeline.config.inheritance import inherited
from pipeline.config.subject import Found, Subject
from pipeline.machine.target import LAST_WITH_TENSORFLOW, limits


def batch(subject: Subject) -> Found:
    """Keras trains on batches."""
    keras = subject.config.source.keras
    if keras is not None and keras.train is not None and subject.batch is None:
        yield ("source", "keras", "train"), "Keras trains on batches: every input and output shape starts with a letter"


def target(subject: Subject) -> Found:
    """A SavedModel has a server: Triton up to 25.02, TF-Serving after that."""
    try:
        release = limits(subject.config.triton.target).release
    except ConfigError:
        return  # reported where the target is
    if release <= LAST_WITH_TENSORFLOW:
        return
    section = subject.config.tfserving
    names = [name for name in subject.config.variants if inherited(subject.variants, name, "format") == "saved_model"]
    elsewhere = (section.from_ or next(iter(names), None)) if section is not None else None
    for name in names:
        if name != elsewhere:
            yield (
                ("variants", name),
                f"Triton {release} has no TensorFlow backend; {LAST_WITH_TENSORFLOW} was the last release with one: "
                "set a `triton.target` up to that, serve `format: onnx` in its place, or name this variant in a "
                "`tfserving` section, which takes it out of Triton's repository",
            )
