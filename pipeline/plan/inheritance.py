"""What a variant takes from those it names under ``from``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.config.schema.variants import Variant


def chain(variants: Mapping[str, Variant], key: str) -> Iterator[str]:
    """The variant, its parent, and so on to the one that exports; load.py has refused circles."""
    name: str | None = key
    while name is not None:
        yield name
        name = variants[name].from_


def inherited(variants: Mapping[str, Variant], key: str, setting: str) -> Any:
    """The nearest value along ``from``; None where nobody sets it."""
    values = (getattr(variants[name], setting) for name in chain(variants, key))
    return next((value for value in values if value is not None), None)


def owner(variants: Mapping[str, Variant], key: str, setting: str) -> str:
    """The variant that sets what ``inherited`` finds; the one asked about where nobody does."""
    return next((name for name in chain(variants, key) if getattr(variants[name], setting) is not None), key)
