"""Canaries in tables: how many workers of which revision the planner keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.rollout.test_planner import NONE, OLD, ONE, PAIR, numbers, ready, state

from disagg_operator.rollout.planner import plan
from disagg_operator.rollout.values import RolloutRules, Workers
from disagg_wire.roles import ROLES


def pairs(revision: str, count: int, **more: Any) -> list[Workers]:
    return [ready(role, revision, count, **more) for role in ROLES]


TRIES = {percent: replace(ONE, canary=percent) for percent in (10, 30, 50)}


def test_a_canary_stays_at_the_pairs_that_its_share_needs() -> None:
    found = plan(state(*OLD, *PAIR, linked=True), TRIES[10])
    assert numbers(found) == {"old": (4, 4), "new": (1, 1)}
    assert (found.complete, found.rolling, found.wake_s) == (False, True, 10.0)
    # Three of ten, with a surge of one: old ones go for them, one by one.
    old = pairs("old", 10)
    assert numbers(plan(state(*old, *PAIR, size=(10, 10), linked=True), TRIES[30])) == {"old": (9, 9), "new": (1, 1)}
    later = state(*pairs("old", 9), *PAIR, size=(10, 10), linked=True)
    assert numbers(plan(later, TRIES[30])) == {"old": (9, 9), "new": (2, 2)}
    there = state(*pairs("old", 8), *pairs("new", 3), size=(10, 10), linked=True)
    assert numbers(plan(there, TRIES[30])) == {"old": (8, 8), "new": (3, 3)}
    # Before the first pair has moved KV, it is a rollout like any other.
    waiting = state(*OLD, *(replace(w, served=False) for w in PAIR), linked=False)
    assert numbers(plan(waiting, TRIES[50])) == {"old": (4, 4), "new": (1, 1)}


def test_a_canary_follows_the_sizes_of_the_pools() -> None:
    larger = state(*pairs("old", 3), *pairs("new", 2), size=(8, 8), linked=True)
    assert numbers(plan(larger, TRIES[50])) == {"old": (5, 5), "new": (4, 4)}
    smaller = state(*pairs("old", 5), *pairs("new", 4), size=(2, 2), linked=True)
    assert numbers(plan(smaller, TRIES[50])) == {"old": (2, 2), "new": (1, 1)}


def test_while_no_old_worker_is_ready_new_ones_take_their_place_and_none_of_them_goes() -> None:
    away = state(*pairs("old", 4, ready=0), *PAIR, linked=True)
    assert numbers(plan(away, TRIES[10])) == {"old": (4, 4), "new": (1, 1)}  # there is room for no more
    room = replace(TRIES[10], surge=dict.fromkeys(ROLES, 4))
    assert numbers(plan(away, room)) == {"old": (4, 4), "new": (4, 4)}


def test_in_a_full_cluster_the_canary_has_the_place_of_an_old_pair() -> None:
    none = replace(NONE, canary=10)
    assert numbers(plan(state(*OLD), none)) == {"old": (3, 3)}
    there = state(*pairs("old", 3), *PAIR, linked=True)
    assert numbers(plan(there, none)) == {"old": (3, 3), "new": (1, 1)}


@pytest.mark.parametrize("rules", [TRIES[10], replace(ONE, paused=True)])
def test_the_deadline_waits_while_a_rollout_is_paused_or_tries_a_revision(rules: RolloutRules) -> None:
    tried, now_s = state(*OLD, *PAIR, linked=True), 0.0
    progress = plan(replace(tried, now_s=now_s), rules).progress
    assert progress is not None
    for _ in range(5):
        now_s += 5000.0
        found = plan(replace(tried, now_s=now_s, progress=progress), rules)
        assert (found.expired, found.progress) == (False, replace(progress, since_s=now_s))
        assert found.progress is not None
        # Not at every look, because each time is a write.
        soon = plan(replace(tried, now_s=now_s + 60.0, progress=found.progress), rules)
        assert soon.progress == found.progress
        progress = found.progress
    goes_on = plan(replace(tried, now_s=now_s + 7000.0, progress=progress), ONE)
    assert not goes_on.expired


def test_workers_that_were_given_up_go_first_if_enough_serve_without_them() -> None:
    extra = [replace(w, given_up=True) for w in pairs("third", 1, order=2)]
    assert numbers(plan(state(*OLD, *extra), ONE)) == {"old": (4, 4)}  # they still hold their devices
    few = state(*pairs("old", 3), *extra)
    assert "third" in numbers(plan(few, ONE))
