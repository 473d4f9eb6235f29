"""Tests of what beats say of a worker."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.workers.lease import AwakeClock, Lease, Limits, Verdict
from disagg_wire.pulse import INTERVAL_S, Beat

LIMITS = Limits(silence_s=1.5, allowance=3.0)


@pytest.mark.parametrize(
    ("beat", "verdict"),
    [
        (Beat(1), Verdict.ALIVE),
        (Beat(1, step_s=0.0, expected_s=0.0), Verdict.ALIVE),
        (Beat(1, step_s=1.4, expected_s=0.01), Verdict.ALIVE),
        (Beat(1, step_s=1.6, expected_s=0.01), Verdict.HUNG),
        (Beat(1, step_s=31.0, expected_s=10.0), Verdict.ALIVE),
        (Beat(1, step_s=31.6, expected_s=10.0), Verdict.HUNG),
        (Beat(1, loop_s=4.4), Verdict.ALIVE),
        (Beat(1, loop_s=4.6), Verdict.HUNG),
        (Beat(1, step_s=20.0, expected_s=10.0, loop_s=20.0), Verdict.ALIVE),
        (Beat(1, step_s=34.0, expected_s=10.0, loop_s=34.0), Verdict.HUNG),
    ],
)
def test_one_beat_says_whether_the_engine_hangs(beat: Beat, verdict: Verdict) -> None:
    lease = Lease(LIMITS)
    lease.heard(beat, 7.0)
    assert lease.verdict(7.0) == lease.verdict(8.5) == verdict
    assert lease.verdict(8.6) == Verdict.SILENT


def test_who_was_never_heard_is_alive_and_who_is_heard_again_too() -> None:
    lease = Lease(LIMITS)
    assert not lease.has_begun
    assert lease.verdict(1e9) == Verdict.ALIVE
    lease.heard(Beat(), 10.0)
    assert lease.has_begun
    assert lease.verdict(12.0) == Verdict.SILENT
    lease.heard(Beat(), 12.0)
    assert lease.verdict(12.0) == Verdict.ALIVE


def test_a_judge_that_sleeps_hears_nobody_and_does_not_judge() -> None:
    clock, lease = AwakeClock(0.2), Lease(LIMITS)
    for now_s in (100.0, 100.1, 100.2):
        clock.tick(now_s)
    assert clock.now_s == pytest.approx(0.2)
    lease.heard(Beat(), clock.now_s)
    clock.tick(160.0)
    assert clock.now_s == pytest.approx(0.4)
    assert lease.verdict(clock.now_s) == Verdict.ALIVE
    clock.tick(159.0)  # A clock that goes back takes nothing away.
    assert clock.now_s == pytest.approx(0.4)


@given(
    st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.05, 60.0), st.floats(0.0, 1.0)), max_size=30),
    st.floats(0.0, 1.2),
)
def test_steps_within_what_was_announced_are_never_taken_for_a_hang(
    steps: list[tuple[float, float, float]], late_s: float
) -> None:
    """Beats come late by a part of the silence that is allowed, and steps use all their time."""
    lease, now_s = Lease(LIMITS), 0.0
    for gap_s, expected_s, part in steps:
        takes_s = LIMITS.allowance * expected_s * part
        at_s = 0.0
        while at_s < takes_s:
            lease.heard(Beat(1, at_s, expected_s, at_s), now_s)
            at_s += INTERVAL_S
            now_s += INTERVAL_S
            assert lease.verdict(now_s + late_s) == Verdict.ALIVE
        lease.heard(Beat(1), now_s)
        now_s += min(gap_s, LIMITS.silence_s - late_s - 0.01)
        assert lease.verdict(now_s) == Verdict.ALIVE


@given(st.floats(0.0, 60.0), st.floats(0.0, 10.0))
def test_a_step_that_never_ends_is_seen_in_time(expected_s: float, began_s: float) -> None:
    lease, at_s = Lease(LIMITS), 0.0
    while lease.verdict(began_s + at_s) == Verdict.ALIVE and at_s < 1000:
        at_s += INTERVAL_S
        lease.heard(Beat(1, at_s, expected_s), began_s + at_s)
    assert at_s <= LIMITS.allowance * expected_s + LIMITS.silence_s + INTERVAL_S + 1e-6
    assert not math.isinf(at_s)


def test_who_answers_is_not_silent_although_no_beat_comes_for_a_while() -> None:
    lease = Lease(LIMITS)
    lease.answered(0.0)  # Nothing was heard that could be prolonged.
    assert not lease.has_begun
    lease.heard(Beat(1), 0.0)
    for now_s in (1.0, 2.0, 3.0):
        lease.answered(now_s)
        assert lease.verdict(now_s + 1.5) == Verdict.ALIVE
    assert lease.verdict(4.6) == Verdict.SILENT
    lease.answered(4.6)
    assert lease.verdict(4.7) == Verdict.SILENT  # It takes a beat ...
    lease.heard(Beat(1), 4.7)
    assert lease.verdict(4.7) == Verdict.ALIVE
    assert lease.verdict(14.8) == Verdict.SILENT
    lease.answered(14.8)  # ... unless it can send none, and is judged without.
    assert not lease.has_begun
    assert lease.verdict(99.0) == Verdict.ALIVE


def test_answers_do_not_hide_that_an_engine_hangs() -> None:
    lease = Lease(LIMITS)
    lease.heard(Beat(1, step_s=1.6, expected_s=0.01), 0.0)
    lease.answered(1.0)
    assert lease.verdict(2.0) == Verdict.HUNG
