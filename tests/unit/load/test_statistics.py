from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.load.statistics import histogram, percentile


def test_percentiles_are_measured_values_of_the_nearest_rank() -> None:
    values = [15.0, 20.0, 35.0, 40.0, 50.0]
    assert [percentile(values, share) for share in (5, 30, 40, 50, 100)] == [15.0, 20.0, 20.0, 35.0, 50.0]
    hundred = list(range(1, 101))
    assert [percentile(hundred[::-1], share) for share in (50, 90, 99)] == [50.0, 90.0, 99.0]
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0
    assert percentile([1.0, 1000.0], 99) == 1000.0


def test_percentiles_agree_with_counting() -> None:
    values = np.random.default_rng(0).exponential(size=997)
    for share in (50, 90, 99):
        found = percentile(values, share)
        assert (values <= found).mean() >= share / 100
        assert (values < found).mean() < share / 100


@pytest.mark.parametrize("count", [1, 2, 13, 1000])
def test_a_histogram_counts_every_value_once(count: int) -> None:
    values = np.random.default_rng(count).lognormal(sigma=2.0, size=count)
    buckets = histogram(values)
    assert sum(bucket.count for bucket in buckets) == count
    assert buckets[0].from_ms == values.min()
    assert buckets[-1].to_ms == values.max()
    for one, other in pairwise(buckets):
        assert one.to_ms == other.from_ms
        assert one.count == ((values >= one.from_ms) & (values < one.to_ms)).sum()


def test_buckets_grow_by_one_factor() -> None:
    buckets = histogram([1.0, 2.0, 4096.0])
    assert len(buckets) == 12
    assert [bucket.to_ms / bucket.from_ms for bucket in buckets] == pytest.approx([2.0] * 12)
    assert [bucket.count for bucket in buckets] == [1, 1, *[0] * 9, 1]


def test_a_histogram_of_nothing_or_of_equal_values() -> None:
    assert histogram([]) == ()
    (bucket,) = histogram([3.0, 3.0])
    assert (bucket.from_ms, bucket.to_ms, bucket.count) == (3.0, 3.0, 2)
