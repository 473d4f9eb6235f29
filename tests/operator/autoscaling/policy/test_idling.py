"""Tests of how long nobody has asked: what is not known is never idle."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.idling import IdleWatch, Routers, both_or_neither, watched


def states(*idle_s: Any, held: Any = 0) -> list[dict[str, Any]]:
    return [{"idle_s": s, "held": held} for s in idle_s]


@pytest.mark.parametrize(
    ("alive", "told", "expected"),
    [
        (["a", "b"], states(900, 700.5), 700.5),
        (["a", "b"], states(900, 0), 0.0),
        (["a", "b"], states(900), None),
        (["a", "b"], [*states(900), {}], None),
        (["a"], states(-1), None),
        (["a"], states("900"), None),
        (["a"], states(True), None),
        ([], [], None),
    ],
    ids=["the last one counts", "one is busy", "one is silent", "an older one", "nonsense", "a text", "a flag", "none"],
)
def test_all_routers_must_say_so(alive: list[str], told: list[dict[str, Any]], expected: float | None) -> None:
    found = Routers(alive, told).idle_s
    assert math.isnan(found) if expected is None else found == expected


@pytest.mark.parametrize(("held", "expected"), [(0, False), (3, True), (None, False), ("3", False)])
def test_a_router_that_holds_requests_is_noticed(held: Any, expected: bool) -> None:
    assert Routers(["a", "b"], [*states(0), *states(0, held=held)]).holding is expected


def test_a_router_of_an_earlier_release_is_noticed() -> None:
    for told, expected in ((states(0), False), ([{}], True), ([*states(0), {}], True), ([], False)):
        found = watched(IdleWatch(), Routers(["a"], told), 0.0, serving=True)
        assert found.too_old is expected
    # One that does not answer has not changed.
    old = watched(IdleWatch(), Routers(["a"], [{}]), 0.0, serving=True)
    assert watched(old, Routers(["a"], []), 5.0, serving=True).too_old


def test_a_router_that_has_not_told_for_long_is_noticed() -> None:
    seen = IdleWatch()
    for now_s, told, expected in (
        (0.0, states(0), 0.0),
        (10.0, [], 0.0),
        (25.0, [], 15.0),
        (30.0, states(0), 0.0),
        (40.0, [], 0.0),
        (50.0, [{}], 0.0),  # one of an earlier release cannot tell
    ):
        seen = watched(seen, Routers(["a"], told), now_s, serving=True)
        assert seen.silent_s(now_s) == expected
    assert watched(IdleWatch(), Routers([], []), 9.0, serving=True).silent_s(99.0) == 0.0


def test_an_operator_that_has_just_started_knows_nothing() -> None:
    first = watched(IdleWatch(), Routers(["a"], states(5000)), 100.0, serving=True)
    assert first.at(100.0) == 0
    later = watched(first, Routers(["a"], states(5060)), 160.0, serving=True)
    assert later.at(160.0) == 60


def test_what_was_seen_long_ago_says_nothing() -> None:
    seen = IdleWatch(frozenset("a"), 0.0, 900.0, 1000.0)
    assert seen.at(1010.0) == 900
    assert math.isnan(seen.at(1020.0))
    assert math.isnan(IdleWatch().at(0.0))


@pytest.mark.parametrize(
    ("alive", "serving", "expected"),
    [
        pytest.param(["a", "b"], True, 1000.0, id="nothing has changed"),
        pytest.param(["a", "b", "c"], True, 1000.0, id="one has come"),
        pytest.param(["a", "c"], True, 0.0, id="one has gone, and its streams with it"),
        pytest.param(["a", "b"], False, 0.0, id="nobody could be served"),
    ],
)
def test_the_clock_starts_again_when_something_may_have_been_missed(
    alive: list[str], serving: bool, expected: float
) -> None:
    before = IdleWatch(frozenset("ab"), 0.0, 990.0, 990.0)
    found = watched(before, Routers(alive, states(*(5000 for _ in alive))), 1000.0, serving=serving)
    assert found.at(1000.0) == expected


def test_a_look_without_an_answer_is_made_up_for_by_the_next() -> None:
    before = IdleWatch(frozenset("a"), 0.0, 990.0, 990.0)
    silent = watched(before, Routers(["a"], []), 1000.0, serving=True)
    assert math.isnan(silent.at(1000.0))
    assert watched(silent, Routers(["a"], states(5000)), 1005.0, serving=True).at(1005.0) == 1005


LOOKS = st.lists(
    st.tuples(st.floats(0.1, 10), st.sets(st.sampled_from("abc"), min_size=1), st.booleans(), st.booleans()), min_size=1
)


@given(LOOKS)
def test_nobody_is_idle_for_longer_than_has_been_watched(looks: list[Any]) -> None:
    """Routers that have been idle for ever are watched, of which some go and some are silent."""
    found, now_s, since_s, before = IdleWatch(), 0.0, None, set[str]()
    for step_s, alive, answer, serving in looks:
        now_s += step_s
        if since_s is None or before - alive or not serving:
            since_s = now_s
        before = alive
        told = states(*(1e9 for _ in alive)) if answer else states(*(1e9 for _ in list(alive)[1:]))
        found = watched(found, Routers(alive, told), now_s, serving=serving)
        assert found.at(now_s) == now_s - since_s if answer else math.isnan(found.at(now_s))


@pytest.mark.parametrize(
    ("replicas", "expected"),
    [((0, 3), (1, 3)), ((3, 0), (3, 1)), ((0, 0), (0, 0)), ((2, 3), (2, 3)), ((None, 0), (None, 0))],
)
def test_a_pool_of_zero_alone_keeps_a_worker(replicas: Any, expected: Any) -> None:
    found = both_or_neither(dict(zip(("prefill", "decode"), replicas, strict=True)))
    assert tuple(found.values()) == expected
