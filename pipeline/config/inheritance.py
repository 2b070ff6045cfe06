"""What a variant takes from those it names under ``from``: asked of variants as written, and of validated ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.schema.variants import Variant

Variants = Mapping[str, Variant | Mapping[str, Any]]


def chain(variants: Variants, key: str) -> list[str]:
    """The variant, its parent, and so on: to the one that makes the file, an unknown one, or one met before."""
    names = [key]
    while isinstance(parent := _setting(variants, names[-1], "from"), str):
        names.append(parent)
        if parent in names[:-1]:
            break
    return names


def inherited(variants: Variants, key: str, setting: str) -> Any:
    """The nearest value along ``from``; None where nobody sets it."""
    return _setting(variants, owner(variants, key, setting), setting)


def owner(variants: Variants, key: str, setting: str) -> str:
    """The variant that sets what ``inherited`` finds; the one asked about where nobody does."""
    return next((name for name in chain(variants, key) if _setting(variants, name, setting) is not None), key)


def _setting(variants: Variants, name: str, setting: str) -> Any:
    variant = variants.get(name, {})
    if isinstance(variant, Mapping):
        return variant.get(setting)
    return getattr(variant, "from_" if setting == "from" else setting)
