"""The share of misses falls with spare workers, and follows what happens."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.forecast import TINY
from disagg_operator.autoscaling.policy.miss_curve import (
    LEAST_SLACK,
    SLACK_BINS,
    SLACK_STEP,
    MissCurve,
    observe,
    share_at,
    slack,
)

FRESH = MissCurve(0.2, 0.2)


@pytest.mark.parametrize(
    ("workers", "demand", "expected"), [(4, 4, 0.0), (6, 4, 1.0), (2, 4, -1.0), (1, 0, 1 / math.sqrt(TINY))]
)
def test_slack_is_in_roots_of_the_demand(workers: float, demand: float, expected: float) -> None:
    assert slack(workers, demand) == pytest.approx(expected)


intervals = st.lists(st.tuples(st.floats(-5, 6), st.floats(0, 1000), st.floats(0, 1), st.floats(1, 3600)), max_size=30)


@given(intervals)
def test_more_spare_workers_never_miss_more_whatever_was_seen(seen: list[tuple[float, float, float, float]]) -> None:
    curve = FRESH
    for at, total, good, interval_s in seen:
        curve = observe(curve, at, total, good * total, interval_s)
    shares = curve.shares()
    assert len(shares) == SLACK_BINS
    assert all(0 <= b <= a <= 1 for a, b in itertools.pairwise(shares))
    assert curve.middle >= -1.5
    assert math.isfinite(curve.middle)


def test_misses_move_the_middle_up_and_none_move_it_down() -> None:
    worse = observe(FRESH, 0.2, 100, 0, 15.0)
    better = observe(FRESH, 0.2, 100, 100, 15.0)
    assert better.middle < FRESH.middle < worse.middle
    assert worse.middle - FRESH.middle <= 0.1 + 1e-9
    assert worse.shares()[30] > FRESH.shares()[30] > better.shares()[30]


def test_what_was_counted_bends_the_curve_where_it_was_counted_and_fades() -> None:
    curve = FRESH
    for _ in range(200):
        curve = observe(curve, 3.0, 100, 90, 15.0)
    at = round((3.0 - LEAST_SLACK) / SLACK_STEP)
    assert curve.shares()[at] == pytest.approx(0.1, abs=0.01)
    later = observe(curve, -2.0, 1, 0, 10 * 86_400.0)
    assert later.total[at] < 0.01 * curve.total[at]


@pytest.mark.parametrize(("at", "total"), [(math.nan, 10.0), (math.inf, 10.0), (0.0, 0.0), (0.0, math.nan)])
def test_an_interval_that_says_nothing_changes_nothing(at: float, total: float) -> None:
    assert observe(FRESH, at, total, 0.0, 15.0) is FRESH


def test_a_slack_beyond_the_bins_counts_in_the_last() -> None:
    assert observe(FRESH, 100.0, 5, 5, 15.0).total[-1] == 5
    assert observe(FRESH, -100.0, 5, 5, 15.0).total[0] == 5


@given(st.floats(-10, 10))
def test_between_the_bins_the_share_is_on_a_straight_line(at: float) -> None:
    shares = [float(SLACK_BINS - i) for i in range(SLACK_BINS)]
    x = min(max((at - LEAST_SLACK) / SLACK_STEP, 0.0), SLACK_BINS - 1.0)
    assert share_at(shares, at) == pytest.approx(SLACK_BINS - x)
