"""Tests of histograms against the values that they counted."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.planning.assessment.bucket_counts import Between, BucketCounts, of_cumulative

INF = math.inf
BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, INF)


def counted(values: list[float], bounds: tuple[float, ...] = BOUNDS) -> BucketCounts:
    counts = [0.0] * len(bounds)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return BucketCounts(bounds, tuple(counts), math.fsum(values))


VALUES = st.lists(st.floats(1, 400), min_size=1, max_size=200)


@given(VALUES, st.floats(0.01, 0.999))
def test_the_percentile_is_within_its_interval(values: list[float], share: float) -> None:
    exact = sorted(values)[min(len(values) - 1, math.ceil(share * len(values) - 1e-9) - 1)]
    found = counted(values).percentile(share)
    assert found.low < exact <= found.high


@given(VALUES, st.floats(0.5, 500))
def test_the_share_is_within_its_interval(values: list[float], limit: float) -> None:
    found, exact = counted(values).share_within(limit), sum(v <= limit for v in values) / len(values)
    assert found.low - 1e-12 <= exact <= found.high + 1e-12
    on_bound = counted(values).share_within(50.0)
    assert on_bound.low == on_bound.high


@given(VALUES, st.floats(0.5, 0.999))
def test_lengths_have_the_exact_mean_and_a_tail_on_the_safe_side(values: list[float], share: float) -> None:
    found = counted(values).lengths(share)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.second_moment >= found.mean**2
    tail = sorted(values)[min(len(values) - 1, math.ceil(share * len(values) - 1e-9) - 1)]
    assert found.tail >= tail or tail > 200  # of a bucket without end, twice its lower end is taken


def test_the_second_moment_is_near_that_of_the_values() -> None:
    values = [1.0 * (1 + i % 90) for i in range(9000)]
    exact = sum(v * v for v in values) / len(values)
    assert counted(values).lengths(0.99).second_moment == pytest.approx(exact, rel=0.1)


def test_what_is_below_one_token_counts_as_one() -> None:
    found = BucketCounts((0.5, INF), (4.0, 0.0), 1.0).lengths(0.99)
    assert (found.mean, found.tail, found.second_moment) == (1.0, 1.0, 1.0)


@given(VALUES, VALUES)
def test_sums_and_differences(some: list[float], more: list[float]) -> None:
    first, both = counted(some), counted(some + more)
    assert both.minus(first) is not None
    assert first.plus(counted(more)).counts == both.counts
    assert first.minus(counted([*some, 400.0])) is None  # it began anew


def test_histograms_with_other_bounds_are_added_where_both_have_one() -> None:
    coarse = counted([1.5, 60.0], (2.0, 100.0, INF))
    found = counted([3.0, 30.0]).plus(coarse)
    assert found.bounds == (2.0, 100.0, INF)
    assert found.counts == (1.0, 3.0, 0.0)
    assert found.total == pytest.approx(94.5)
    assert coarse.minus(counted([3.0])) is None


def test_counts_as_prometheus_shows_them() -> None:
    assert of_cumulative({1.0: 2, 5.0: 3, INF: 4}, 9.0) == BucketCounts((1.0, 5.0, INF), (2, 1, 1), 9.0)
    # Rounded rates may decrease, and a page may lack the last bound.
    assert of_cumulative({1.0: 2.0, 5.0: 1.9}, 9.0) == BucketCounts((1.0, 5.0, INF), (2.0, 0.0, 0.0), 9.0)
    assert of_cumulative({}, 0.0).count == 0


def test_scaled() -> None:
    assert counted([4.0]).scaled(0.5).percentile(0.5) == Between(1.0, 2.5)


def test_rounding_takes_no_percentile_past_the_last_value() -> None:
    found = BucketCounts((1.0, 2.0, INF), (0.1, 0.2, 0.0), 0.3)
    assert found.percentile(1.0) == Between(1.0, 2.0)
    assert found.percentile(1.5) == Between(1.0, 2.0)
