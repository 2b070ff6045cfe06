"""What a list of latencies says: percentiles and a histogram. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BUCKETS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """How many latencies are at least ``from_ms`` and below ``to_ms``; the last bucket holds its upper end too."""

    from_ms: float
    to_ms: float
    count: int


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least ``share`` percent of them do not exceed.

    This is numpy's method ``inverted_cdf`` (the nearest rank): always a latency that was measured, never one
    interpolated between two of them.
    """
    return float(np.percentile(np.asarray(values, np.float64), share, method="inverted_cdf"))


def histogram(values_ms: Sequence[float]) -> tuple[Bucket, ...]:
    """Buckets between the least and the greatest latency, each wider than the last by the same factor.

    Latencies spread over orders of magnitude, and the slow ones are what one looks for. Every value is counted once.
    """
    values = np.asarray(values_ms, np.float64)
    if not values.size:
        return ()
    low, high = float(values.min()), float(values.max())
    if low <= 0 or low == high:
        return (Bucket(from_ms=low, to_ms=high, count=len(values)),)
    edges = np.geomspace(low, high, _BUCKETS + 1)
    edges[0], edges[-1] = low, high  # geomspace may miss its own ends by a rounding
    counts, _ = np.histogram(values, edges)
    return tuple(
        Bucket(from_ms=float(start), to_ms=float(end), count=int(count))
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
