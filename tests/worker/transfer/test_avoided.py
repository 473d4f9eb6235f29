"""Tests of the time for which NIXL is not used with a peer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.transfer.avoided import FIRST_S, MOST_S, Avoided


def test_a_failure_is_avoided_for_twice_as_long_each_time_up_to_a_bound() -> None:
    avoided, now_s, times = Avoided(), 0.0, list[float]()
    assert not avoided.contains("d", now_s)
    for _ in range(9):
        times.append(avoided.failed("d", now_s))
        assert avoided.contains("d", now_s + times[-1] - 0.1)
        now_s += times[-1]
        assert not avoided.contains("d", now_s)
    assert times[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert times[-1] == MOST_S


def test_transfers_that_fail_together_count_once() -> None:
    avoided = Avoided()
    assert avoided.failed("d", 0.0) == FIRST_S
    assert avoided.failed("d", 1.0) == FIRST_S
    assert avoided.contains("d", 1.0 + FIRST_S - 0.1)
    assert not avoided.contains("d", 1.0 + FIRST_S)


def test_what_has_worked_is_as_good_as_new() -> None:
    avoided = Avoided()
    for now_s in (0.0, 10.0):
        avoided.failed("d", now_s)
    avoided.worked("d")
    avoided.worked("other")
    assert not avoided.contains("d", 10.0)
    assert avoided.failed("d", 50.0) == FIRST_S


@given(st.lists(st.integers(0, 2000), min_size=300, max_size=400))
def test_the_latest_failures_are_known_and_no_more_than_a_bound(peers: list[int]) -> None:
    avoided = Avoided()
    for peer in peers:
        avoided.failed(str(peer), 0.0)
    assert len(avoided._peers) <= 256
    assert all(avoided.contains(str(peer), 1.0) for peer in peers[-200:])
