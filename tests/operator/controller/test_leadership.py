"""Tests of the rules of the election, among them that two candidates never lead at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.controller import leadership
from disagg_operator.controller.leadership import Standing, Timing

TIMING = Timing()
WALL = "2026-01-01T00:00:00.000000Z"


def lease(holder: str = "a", version: str = "1", **spec: Any) -> dict[str, Any]:
    """Return a Lease as the API server stores it."""
    meta = {"name": "l", "namespace": "sys", "resourceVersion": version}
    return {"metadata": meta, "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, **spec}}


def test_a_lease_that_does_not_exist_is_taken_at_once() -> None:
    standing = leadership.seen(Standing(), None, "a", 100.0)
    assert leadership.may_take(standing, "a", 100.0)
    made = leadership.taken(None, "sys", "l", "a", TIMING, WALL)
    assert made["metadata"] == {"namespace": "sys", "name": "l"}
    assert made["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "acquireTime": WALL,
        "renewTime": WALL,
        "leaseTransitions": 0,
    }


def test_a_lease_of_somebody_else_is_taken_when_it_has_not_changed_for_its_duration() -> None:
    standing = leadership.seen(Standing(), lease("b"), "a", 100.0)
    assert not leadership.may_take(standing, "a", 114.9)
    assert leadership.may_take(standing, "a", 115.0)
    same = leadership.seen(standing, lease("b"), "a", 110.0)
    assert leadership.may_take(same, "a", 115.0)
    renewed = leadership.seen(standing, lease("b", "2"), "a", 110.0)
    assert not leadership.may_take(renewed, "a", 124.9)
    assert leadership.taken(lease("b", leaseTransitions=4), "sys", "l", "a", TIMING, WALL)["spec"] == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "acquireTime": WALL,
        "renewTime": WALL,
        "leaseTransitions": 5,
    }


def test_a_lease_that_was_given_back_is_taken_at_once_and_counts_as_a_change() -> None:
    free = leadership.released(lease("b", leaseTransitions=1, acquireTime="then"), WALL)
    assert (free["spec"]["holderIdentity"], free["spec"]["leaseDurationSeconds"]) == ("", 1)
    assert free["metadata"]["resourceVersion"] == "1"
    standing = leadership.seen(Standing(), free | {"metadata": {"resourceVersion": "2"}}, "a", 100.0)
    assert leadership.may_take(standing, "a", 100.0)
    assert leadership.taken(free, "sys", "l", "a", TIMING, WALL)["spec"]["leaseTransitions"] == 2


def test_a_renewal_keeps_the_time_of_the_acquisition_and_the_version_that_it_saw() -> None:
    made = leadership.taken(lease("a", "7", acquireTime="then", leaseTransitions=3), "sys", "l", "a", TIMING, WALL)
    assert (made["spec"]["acquireTime"], made["spec"]["leaseTransitions"]) == ("then", 3)
    assert made["metadata"]["resourceVersion"] == "7"


def test_a_leader_begins_writes_until_the_deadline_and_ends_them_before_the_lease_ends() -> None:
    standing = leadership.won(lease("a"), "a", TIMING, begun_s=100.0)
    assert leadership.write_within_s(standing, TIMING, 100.0) == 15.0
    assert leadership.write_within_s(standing, TIMING, 109.9) == pytest.approx(5.1)
    assert leadership.write_within_s(standing, TIMING, 110.0) == 0.0
    assert not leadership.leads(standing, TIMING, 110.0)
    assert leadership.write_within_s(Standing(), TIMING, 0.0) == 0.0


def test_whoever_sees_another_holder_does_not_lead() -> None:
    standing = leadership.won(lease("a"), "a", TIMING, begun_s=100.0)
    assert leadership.leads(leadership.seen(standing, lease("a", "2"), "a", 101.0), TIMING, 101.0)
    assert not leadership.leads(leadership.seen(standing, lease("b", "2"), "a", 101.0), TIMING, 101.0)


@pytest.mark.parametrize(
    ("holder", "since_s", "chance", "pause_s"),
    [
        pytest.param("a", 0.0, 1.0, 2.0, id="a renewal is not put off"),
        pytest.param("b", 0.0, 0.0, 2.0, id="a Lease of another"),
        pytest.param("b", 0.0, 1.0, 2.4, id="two candidates do not look together"),
        pytest.param("b", 14.5, 0.0, 0.5, id="it is looked at when it ends"),
        pytest.param("b", 20.0, 0.0, 2.0, id="a write that failed is not repeated at once"),
        pytest.param("", 20.0, 0.5, 2.2, id="nobody's"),
    ],
)
def test_the_next_look(holder: str, since_s: float, chance: float, pause_s: float) -> None:
    standing = leadership.seen(Standing(), lease(holder), "a", 100.0)
    assert leadership.next_look_s(standing, "a", TIMING, 100.0 + since_s, chance) == pytest.approx(pause_s)


class Election:
    """Two candidates whose clocks differ, and the API server between them."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.stored: dict[str, Any] | None = None
        self.version = 0
        self.clocks = {"a": 1000.0, "b": -50.0}
        self.known = {"a": Standing(), "b": Standing()}

    def time(self, me: str) -> float:
        return self.now_s + self.clocks[me]

    def look(self, me: str, *, took_s: float, lost: bool) -> None:
        """Read the Lease, wait, and write it if the rules say so. `lost`: the answer is lost."""
        self.known[me] = leadership.seen(self.known[me], self.stored, me, self.time(me))
        if not leadership.may_take(self.known[me], me, self.time(me)):
            return
        begun_s, seen_version = self.time(me), self.version
        self.now_s += took_s
        if self.version != seen_version:
            return
        self.version += 1
        wanted = leadership.taken(self.stored, "sys", "l", me, TIMING, WALL)
        self.stored = wanted | {"metadata": {**wanted["metadata"], "resourceVersion": str(self.version)}}
        if not lost:
            self.known[me] = leadership.won(self.stored, me, TIMING, begun_s)


STEPS = st.tuples(st.sampled_from("ab"), st.floats(0, 20), st.floats(0, 12), st.booleans())


@given(st.lists(STEPS, max_size=30))
def test_two_never_lead_at_once_and_no_write_reaches_into_the_term_of_another(
    steps: list[tuple[str, float, float, bool]],
) -> None:
    election = Election()
    ends_s = {"a": 0.0, "b": 0.0}
    for me, pause_s, took_s, lost in steps:
        election.now_s += pause_s
        election.look(me, took_s=took_s, lost=lost)
        within_s = {
            who: leadership.write_within_s(election.known[who], TIMING, election.time(who)) for who in ("a", "b")
        }
        assert min(within_s.values()) == 0.0
        for who, other in (("a", "b"), ("b", "a")):
            if within_s[who]:
                assert election.now_s >= ends_s[other], "the writes of the other have ended"
                ends_s[who] = election.now_s + within_s[who]
