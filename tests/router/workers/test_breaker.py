"""Tests of the circuit breaker."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from disagg_router.workers.breaker import Breaker


def test_what_failed_is_avoided_for_longer_each_time_until_it_succeeds() -> None:
    breaker, now_s, waits = Breaker(), 0.0, []
    for _ in range(7):
        breaker.failed("k", now_s)
        started_s = now_s
        while breaker.is_open("k", now_s):
            now_s += 0.5
        waits.append(now_s - started_s)
    assert waits == [1, 2, 4, 8, 16, 30, 30]
    breaker.succeeded("k")
    breaker.failed("k", now_s)
    assert not breaker.is_open("k", now_s + 1)


def test_many_requests_that_one_fault_ended_count_as_one_failure() -> None:
    breaker = Breaker()
    for i in range(64):
        breaker.failed("k", i * 0.01)
    assert not breaker.is_open("k", 1.0)


def test_a_pair_that_fails_for_days_stays_avoided() -> None:
    """The value of 2**1024 is beyond every float."""
    breaker, now_s = Breaker(), 0.0
    for _ in range(3000):
        breaker.failed("k", now_s)
        assert breaker.is_open("k", now_s + 0.9)
        now_s += 30


def test_the_breaker_forgets_workers_that_are_gone() -> None:
    breaker = Breaker()
    for key in ("a", "a|b", "a|c"):
        breaker.failed(key, 0.0)
    breaker.keep_only({"a", "b"}, 0.5)
    assert len(breaker._failed) == 3
    breaker.keep_only({"a", "b"}, 5.0)
    assert set(breaker._failed) == {"a", "a|b"}


def test_the_pause_is_any_part_of_the_longest() -> None:
    rng = random.Random(1)
    pauses = []
    for _ in range(200):
        breaker = Breaker(dice=rng.random)
        breaker.failed("k", 0.0)
        pauses.append(next(t for t in range(101) if not breaker.is_open("k", t / 100)))
    assert min(pauses) < 10
    assert max(pauses) > 90
    assert 40 < sum(pauses) / len(pauses) < 60


def test_what_is_half_open_is_tried_by_one_at_a_time() -> None:
    breaker = Breaker()
    breaker.failed("k", 0.0)
    assert breaker.probe(("k", "other"), 0.5) == ()
    assert breaker.counts(0.5) == {("worker", "open"): 1}
    assert breaker.probe(("k", "other"), 1.0) == ("k",)
    assert breaker.counts(1.0) == {("worker", "half_open"): 1}
    assert breaker.is_open("k", 1.0)
    assert breaker.probe(("k",), 2.0) == ()
    breaker.release(("k", "other"), 1.0)
    assert not breaker.is_open("k", 2.0)
    assert breaker.probe(("k",), 2.0) == ("k",)
    breaker.succeeded("k")
    assert not breaker.is_open("k", 2.0)
    assert breaker.counts(2.0) == {}
    assert breaker.changes == {("worker", "open"): 1, ("worker", "half_open"): 2, ("worker", "closed"): 1}


def test_a_try_that_fails_opens_it_for_longer_and_one_that_never_ends_keeps_nobody_off_for_good() -> None:
    breaker = Breaker()
    breaker.failed("a|b", 0.0)
    breaker.probe(("a|b",), 1.0)
    breaker.failed("a|b", 1.5)
    assert breaker.is_open("a|b", 3.4)
    assert breaker.probe(("a|b",), 3.5) == ("a|b",)
    assert breaker.is_open("a|b", 3.5 + breaker.probe_s - 0.1)
    assert not breaker.is_open("a|b", 3.5 + breaker.probe_s)
    assert breaker.changes["pair", "open"] == 2


@given(st.lists(st.tuples(st.sampled_from(["fail", "succeed", "probe", "release", "wait"]), st.floats(0, 5))))
def test_never_do_two_try_at_once_and_success_always_closes(steps: list[tuple[str, float]]) -> None:
    breaker, now_s, held_until_s, probed_s = Breaker(dice=random.Random(3).random), 0.0, 0.0, 0.0
    for what, value in steps:
        if what == "fail":
            breaker.failed("k", now_s)
            held_until_s = 0.0
        elif what == "succeed":
            breaker.succeeded("k")
            held_until_s = 0.0
            assert not breaker.is_open("k", now_s)
        elif what == "probe" and breaker.probe(("k",), now_s):
            assert now_s >= held_until_s
            held_until_s, probed_s = now_s + breaker.probe_s, now_s
            assert breaker.is_open("k", now_s)
        elif what == "release":
            breaker.release(("k",), probed_s)
            held_until_s = 0.0
        now_s += value


def test_a_success_that_began_before_the_failure_closes_nothing() -> None:
    """As that of a stream whose prompt was computed minutes ago, by a worker that is dead now."""
    breaker = Breaker()
    breaker.failed("k", 10.0)
    breaker.succeeded("k", 9.0)
    assert breaker.is_open("k", 10.5)
    assert not breaker.is_open("k", 11.0)
    breaker.failed("k", 11.0)
    assert breaker.is_open("k", 12.9)
    breaker.succeeded("k", 13.0)
    assert breaker.counts(13.0) == {}


def test_who_tried_for_too_long_does_not_let_others_try_beside_the_next_one() -> None:
    breaker = Breaker()
    breaker.failed("k", 0.0)
    assert breaker.probe(("k",), 1.0) == ("k",)
    assert breaker.probe(("k",), 17.0) == ("k",)
    breaker.release(("k",), 1.0)
    assert breaker.is_open("k", 18.0)
    breaker.release(("k",), 17.0)
    assert not breaker.is_open("k", 18.0)
