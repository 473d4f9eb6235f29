"""Tests of token buckets: a table of what they hold, and what holds for any sequence of calls."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.admission.token_bucket import TokenBucket

# (amounts with their times and what `take` says of each, of a bucket of 60 a minute)
TABLE: list[tuple[str, list[tuple[float, int, float]]]] = [
    ("a minute's worth at once", [(0.0, 60, 0.0), (0.0, 1, 1.0)]),
    ("one a second after that", [(0.0, 60, 0.0), (1.0, 1, 0.0), (1.0, 1, 1.0), (1.5, 1, 0.5)]),
    ("what is refused is not taken", [(0.0, 50, 0.0), (0.0, 20, 10.0), (0.0, 10, 0.0)]),
    ("never more than is held", [(0.0, 61, math.inf), (1000.0, 61, math.inf), (1000.0, 60, 0.0), (1000.0, 1, 1.0)]),
    ("time that goes back is none", [(10.0, 60, 0.0), (5.0, 1, 1.0), (11.0, 1, 0.0)]),
    ("nothing can always be taken", [(0.0, 60, 0.0), (0.0, 0, 0.0)]),
]


@pytest.mark.parametrize("takes", [t[1] for t in TABLE], ids=[t[0] for t in TABLE])
def test_what_can_be_taken(takes: list[tuple[float, int, float]]) -> None:
    bucket = TokenBucket(60, 0.0)
    for now_s, amount, wait_s in takes:
        assert bucket.take(amount, now_s) == pytest.approx(wait_s)


def test_an_overdrawn_bucket_gives_nothing_until_it_has_made_up_for_it() -> None:
    bucket = TokenBucket(60, 0.0)
    bucket.spend(90, 0.0)
    assert bucket.remaining(0.0) == 0
    assert bucket.full_in_s(0.0) == pytest.approx(90.0)
    assert bucket.take(0, 0.0) == pytest.approx(30.0)
    assert bucket.take(0, 30.0) == 0.0
    assert (bucket.remaining(40.5), bucket.remaining(1000.0)) == (10, 60)


def test_another_size_keeps_what_was_used() -> None:
    bucket = TokenBucket(60, 0.0)
    assert bucket.take(50, 0.0) == 0.0
    bucket.resize(600, 0.0)
    assert (bucket.remaining(0.0), bucket.remaining(1.0)) == (10, 20)
    bucket.resize(5, 1.0)
    assert (bucket.remaining(1.0), bucket.full_in_s(1.0)) == (5, 0.0)


STEPS = st.lists(st.tuples(st.floats(0, 30), st.integers(0, 200), st.booleans()), max_size=50)


@given(st.integers(1, 100), STEPS)
def test_no_more_is_taken_than_a_minutes_worth_and_what_has_come_since(
    per_minute: int, steps: list[tuple[float, int, bool]]
) -> None:
    bucket, now_s, taken = TokenBucket(per_minute, 0.0), 0.0, 0
    for pause_s, amount, waits in steps:
        now_s += pause_s
        wait_s = bucket.take(amount, now_s)
        if waits and 0 < wait_s < math.inf:
            # Whoever comes back when he was told to is served.
            now_s += wait_s
            wait_s = bucket.take(amount, now_s)
            assert wait_s == 0
        assert (wait_s == math.inf) == (amount > per_minute)
        taken += amount if wait_s == 0 else 0
        assert taken <= per_minute * (1 + now_s / 60) + 1e-3
        assert 0 <= bucket.remaining(now_s) <= per_minute


@given(st.integers(1, 100), st.integers(0, 500), st.floats(0, 600))
def test_an_overdraft_costs_as_long_as_it_takes_to_fill(per_minute: int, spent: int, pause_s: float) -> None:
    bucket = TokenBucket(per_minute, 0.0)
    bucket.spend(spent, 0.0)
    full_s = bucket.full_in_s(0.0)
    assert full_s == pytest.approx(60 * spent / per_minute)
    assert bucket.full_in_s(pause_s) == pytest.approx(max(0.0, full_s - pause_s), abs=1e-6)
