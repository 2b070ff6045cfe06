"""Rules between deployments and the variants they are made of."""

from __future__ import annotations

from pipeline.config.explain import nearest
from pipeline.config.subject import Found, Subject


def torchserve(subject: Subject) -> Found:
    """`torchserve` is made from a torchscript variant, and batches only what has a batch dimension."""
    section = subject.config.torchserve
    if section is None:
        return
    scripts = [key for key in subject.config.variants if _format(subject, key) == "torchscript"]
    if section.from_ is None and not scripts:
        yield ("torchserve",), "TorchServe runs TorchScript: expected a variant of `format: torchscript`"
    elif section.from_ is not None and section.from_ not in subject.config.variants:
        yield ("torchserve", "from"), f"no variant is called `{section.from_}`; {nearest(section.from_, scripts)}"
    elif section.from_ is not None and (made := _format(subject, section.from_)) not in ("torchscript", None):
        yield ("torchserve", "from"), f"expected a torchscript variant; `{section.from_}` is {made}"
    if subject.batch is None and section.batch_size not in (None, 1):
        yield (
            ("torchserve", "batch_size"),
            "expected 1: the model has no batch dimension (its shapes do not all start with the same letter)",
        )


def _format(subject: Subject, key: str) -> str | None:
    """The variant's format, its own or an ancestor's; None in a circle or under a parent that is not there."""
    variants, seen = subject.config.variants, set[str]()
    while key in variants and key not in seen:
        seen.add(key)
        variant = variants[key]
        if variant.format is not None or variant.from_ is None:
            return variant.format
        key = variant.from_
    return None
