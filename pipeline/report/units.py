"""Figures for a person: sizes, times, rates."""

from __future__ import annotations


def human_bytes(count: int) -> str:
    """Bytes: ``45.0 MB`` (decimal units)."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def human_figure(value: float) -> str:
    """A positive figure in three digits: ``0.553``, ``12.3``, ``1720``; no exponent."""
    for limit, decimals in ((1, 3), (10, 2), (100, 1)):
        if round(value, decimals) < limit:
            return f"{value:.{decimals}f}"
    return f"{value:.0f}"


def human_ms(milliseconds: float) -> str:
    """A time: ``0.553 ms``."""
    return f"{human_figure(milliseconds)} ms"


def human_rate(per_s: float) -> str:
    """A throughput: ``1720/s``."""
    return f"{human_figure(per_s)}/s"
