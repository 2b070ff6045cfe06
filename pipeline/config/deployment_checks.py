"""Rules between deployments and the variants they are made of."""

from __future__ import annotations

from pipeline.config.explain import nearest
from pipeline.config.inheritance import inherited
from pipeline.config.subject import Found, Subject


def torchserve(subject: Subject) -> Found:
    """`torchserve` is made from a torchscript variant, and batches only what has a batch dimension."""
    section = subject.config.torchserve
    if section is None:
        return
    variants = subject.variants
    formats = {key: inherited(variants, key, "format") for key in subject.config.variants}
    scripts = [key for key, made in formats.items() if made == "torchscript"]
    if section.from_ is None and not scripts:
        yield ("torchserve",), "TorchServe runs TorchScript: expected a variant of `format: torchscript`"
    elif section.from_ is not None and section.from_ not in formats:
        yield ("torchserve", "from"), f"no variant is called `{section.from_}`; {nearest(section.from_, scripts)}"
    elif section.from_ is not None and formats[section.from_] not in ("torchscript", None):
        yield ("torchserve", "from"), f"expected a torchscript variant; `{section.from_}` is {formats[section.from_]}"
    if subject.batch is None and section.batch_size not in (None, 1):
        yield (
            ("torchserve", "batch_size"),
            "expected 1: the model has no batch dimension (its shapes do not all start with the same letter)",
        )
