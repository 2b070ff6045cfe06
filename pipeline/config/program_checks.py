"""Rules for C++ programs (`format: libtorch`)."""

from __future__ import annotations

from pipeline.config.document import Key
from pipeline.config.subject import Found, Subject
from pipeline.formats.table import FORMATS


def programs(subject: Subject) -> Found:
    """A program is made from image files to labels, is nobody's parent, and is no Triton model."""
    variants = subject.config.variants
    formats = {name: variant.format for name, variant in variants.items() if variant.format}
    names = {name for name, made in formats.items() if not FORMATS[made].backends}
    ensemble = subject.config.ensemble
    if ensemble is not None and ensemble.from_ in names:
        yield ("ensemble", "from"), f"`{ensemble.from_}` is a program, which Triton does not serve"
    for name, variant in variants.items():
        if variant.from_ in names:
            made_from = variants[variant.from_].from_
            yield ("variants", name, "from"), f"`{variant.from_}` is a program; expected its model, `{made_from}`"
    for name in sorted(names):
        key: Key = ("variants", name)
        lacking = [section for section in ("preprocess", "postprocess") if getattr(subject.config, section) is None]
        if lacking:
            yield (
                (*key, "format"),
                f"a {formats[name]} program takes image files and answers with labels: the YAML lacks "
                + " and ".join(lacking),
            )
        if variants[name].triton:
            yield (*key, "triton"), f"not to be set here: Triton does not serve a {formats[name]} program"
