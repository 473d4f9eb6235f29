"""Tests of the limit of prefill batches by decode's room: the less room, the smaller they are, but
never too small to saturate the processor and never above the setting.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.room import Room
from disagg_worker.engine.deadlines import Waiting
from disagg_worker.engine.prefill_limit import KnownRoom, free_share, limited
from disagg_worker.engine.prefill_scheduler import PrefillRules, plan_prefill

RULES = PrefillRules(budget_tokens=2048, wait_s=0.05, utilisation=0.85, max_sequences=64, saturating_tokens=256)
rooms = st.builds(
    Room,
    st.integers(0, 2000),
    st.integers(0, 1000),
    st.integers(0, 100),
    st.integers(0, 64),
    st.floats(0, 10, allow_nan=False),
)
rules = st.builds(
    PrefillRules,
    budget_tokens=st.integers(16, 8192),
    wait_s=st.just(0.05),
    utilisation=st.just(0.85),
    max_sequences=st.integers(1, 64),
    saturating_tokens=st.none() | st.integers(1, 10000),
)


def room(share: float) -> Room:
    return Room(int(share * 10_000), 10_000, 64, 64, 0.01)


@pytest.mark.parametrize(
    ("share", "tokens", "prompts"),
    [(1.0, 2048, 64), (0.25, 2048, 64), (0.125, 1152, 32), (0.025, 435, 7), (0.0, 256, 1)],
)
def test_the_limit_is_as_documented(share: float, tokens: int, prompts: int) -> None:
    cut = limited(RULES, KnownRoom(room(share), 10.0), 12.0)
    assert (cut.budget_tokens, cut.max_sequences) == (tokens, prompts)


def test_steps_that_take_too_long_cut_it_too_where_there_is_a_target() -> None:
    slow = KnownRoom(replace(room(0.5), step_s=0.1), 0.0)
    assert limited(RULES, slow, 0.0) is RULES
    assert limited(RULES, slow, 0.0, 0.1) is RULES
    assert limited(RULES, slow, 0.0, 0.05).budget_tokens == 256 + (2048 - 256) // 2
    scarce = KnownRoom(replace(room(0.125), step_s=0.1), 0.0)
    assert limited(RULES, scarce, 0.0, 0.05).budget_tokens == 256 + (2048 - 256) // 4


def test_without_fresh_news_there_is_no_limit() -> None:
    assert limited(RULES, None, 0.0) is RULES
    assert limited(RULES, KnownRoom(room(0.0), 10.0), 15.1) is RULES
    assert limited(RULES, KnownRoom(room(0.0), 10.0), 15.0) is not RULES


def test_the_scarcer_of_seats_and_kv_counts() -> None:
    assert free_share(Room(900, 1000, 1, 10, 0.0)) == 0.1
    assert free_share(Room(50, 1000, 9, 10, 0.0)) == 0.05
    assert free_share(Room(0, 0, 0, 0, 0.0)) == 0.0


@given(rules, rooms, rooms, st.none() | st.floats(0.01, 1))
def test_bounds_hold_and_more_room_never_means_less(
    some: PrefillRules, a: Room, b: Room, target_s: float | None
) -> None:
    cut = [limited(some, KnownRoom(replace(r, step_s=0.3), 0.0), 1.0, target_s) for r in (a, b)]
    for c in cut:
        assert min(some.budget_tokens, some.full_tokens) <= c.budget_tokens <= some.budget_tokens
        assert 1 <= c.max_sequences <= some.max_sequences
        assert c.full_tokens == some.full_tokens
    if free_share(a) <= free_share(b):
        assert cut[0].budget_tokens <= cut[1].budget_tokens
        assert cut[0].max_sequences <= cut[1].max_sequences


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=20), rooms)
def test_whatever_the_limit_the_first_in_line_gets_on(lengths: list[int], r: Room) -> None:
    waiting = [Waiting(i, n, 0.0) for i, n in enumerate(lengths)]
    plan = plan_prefill(waiting, 1.0, limited(RULES, KnownRoom(r, 0.9), 1.0))
    assert plan.batch[0][0] == 0
    assert plan.batch[0][1] >= 1


def test_rules_that_are_at_their_floor_already_stay() -> None:
    small = replace(RULES, budget_tokens=100)
    assert limited(small, KnownRoom(room(0.0), 0.0), 0.0).budget_tokens == 100
