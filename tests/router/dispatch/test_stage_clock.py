"""Tests of the stages of a request, which add up to the time of its first token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.dispatch.stage_clock import StageClock
from disagg_wire import series


def test_a_request_that_waits_fails_once_and_is_served() -> None:
    clock = StageClock()
    clock.start(0.0, 1.0)
    clock.enter("queue_decode", 1.5)
    clock.attempt(3.5)
    clock.enter(series.PREFILL, 3.6)
    clock.failed(4.0)
    clock.attempt(4.1)
    clock.enter(series.PREFILL, 4.3)
    found = clock.end(5.0)
    expected = {"hold": 1.0, "admit": 0.5, "queue_decode": 2.0, "retry": 0.6, "reserve": 0.2, "prefill": 0.7}
    assert {name: round(s, 6) for name, s in found.items()} == expected


def test_nothing_is_counted_before_the_start_or_after_the_first_token() -> None:
    clock = StageClock()
    clock.attempt(5.0)
    clock.failed(6.0)
    assert sum(clock.seconds.values()) == 0
    clock.start(7.0)
    clock.start(9.0)
    assert sum(clock.end(8.0).values()) == pytest.approx(1.0)
    clock.enter(series.PREFILL, 20.0)
    assert sum(clock.seconds.values()) == pytest.approx(1.0)


@given(
    st.lists(st.tuples(st.sampled_from(["attempt", "failed", "queue_prefill", "hold"]), st.floats(0, 10)), max_size=20)
)
def test_stages_add_up_whatever_happens(steps: list[tuple[str, float]]) -> None:
    clock, now_s = StageClock(), 100.0
    clock.start(100.0, 0.0)
    for what, taken_s in steps:
        now_s += taken_s
        if what == "attempt":
            clock.attempt(now_s)
        elif what == "failed":
            clock.failed(now_s)
        else:
            clock.enter(what, now_s)
    assert sum(clock.end(now_s + 1).values()) == pytest.approx(now_s + 1 - 100.0)


def test_its_changes_are_kept_with_their_times_up_to_a_bound() -> None:
    clock = StageClock()
    clock.start(1.0)
    clock.chooses(2.0)
    clock.attempt(3.0)
    assert clock.attempt_s == 3.0
    clock.failed(4.0)
    assert clock.attempt_s is None
    assert list(clock.marks) == [("choose", 2.0), ("reserve", 3.0), ("failed", 4.0)]
    for n in range(1000):
        clock.chooses(5.0 + n)
    assert (len(clock.marks), clock.marks[-1]) == (256, ("choose", 1004.0))
