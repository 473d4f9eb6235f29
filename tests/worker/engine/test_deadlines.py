"""Tests of the order by due times: the prompts that go first, those that join a batch, and the
order of arrival if nothing is due.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples

from disagg_worker.engine.deadlines import PATIENCE_S, Standing, Timing, Waiting, by_due
from disagg_worker.engine.prefill_pace import UNKNOWN, Pace
from disagg_worker.engine.prefill_scheduler import FairShares, PrefillRules, bucket, plan_prefill

# A token takes one millisecond.
PACE = Pace(0.0, 0.001)
RULES = PrefillRules(budget_tokens=1000, wait_s=0.05, utilisation=0.85, max_sequences=8)
NOW_S = 100.0


def _waiting(key: int, tokens: int, due_in_s: float | None, for_s: float = 1.0, **more: Any) -> Waiting:
    return Waiting(key, tokens, NOW_S - for_s, due_s=None if due_in_s is None else NOW_S + due_in_s, **more)


def _keys(waiting: list[Waiting], pace: Pace = PACE, chunk_tokens: int = 500) -> list[int]:
    return [w.key for w in by_due(waiting, Timing(NOW_S, chunk_tokens, pace))]


ORDERS: dict[str, tuple[list[Waiting], list[int]]] = {
    "the earliest due": ([_waiting(0, 10, 3.0), _waiting(1, 10, 1.0), _waiting(2, 10, 2.0)], [1, 2, 0]),
    "of two dues at once who came first": ([_waiting(0, 10, 1.0), _waiting(1, 10, 1.0)], [0, 1]),
    "who can be on time": ([_waiting(0, 10, -1.0), _waiting(1, 10, 1.0)], [1, 0]),
    "who can't be on time comes last, by arrival": (
        [_waiting(0, 10, -1.0), _waiting(1, 10, -2.0), _waiting(2, 10, 9.0)],
        [2, 0, 1],
    ),
    "whose due would pass while it is computed can't": ([_waiting(0, 201, 0.2), _waiting(1, 10, 9.0)], [1, 0]),
    "who just ends in time can": ([_waiting(0, 200, 0.2001), _waiting(1, 10, 9.0)], [0, 1]),
    "what is cached takes no time": ([_waiting(0, 900, 0.2, cached_tokens=800), _waiting(1, 10, 9.0)], [0, 1]),
    "who has no due counts as due when it came": (
        [_waiting(0, 10, 1.0), _waiting(1, 10, None, 0.5), _waiting(2, 10, None, 0.4)],
        [1, 2, 0],
    ),
    "who has waited for the patience": (
        [
            _waiting(0, 10, -9.0, PATIENCE_S),
            _waiting(1, 10, -8.0, PATIENCE_S - 0.1),
            _waiting(2, 10, None),
            _waiting(3, 10, 1.0),
        ],
        [0, 2, 3, 1],
    ),
    "the aged by arrival": (
        [_waiting(0, 10, -1.0, 22.0), _waiting(1, 10, 5.0, 21.0), _waiting(2, 10, None)],
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_first_goes(name: str) -> None:
    waiting, expected = ORDERS[name]
    assert _keys(waiting) == expected


def test_where_the_last_batch_was_led_by_an_aged_one_it_is_the_others_turn() -> None:
    waiting = [
        _waiting(0, 10, -1.0, 22.0),
        _waiting(1, 10, 5.0, 21.0),
        _waiting(2, 10, None),
        replace(_waiting(3, 10, -1.0), tenant="a"),
    ]
    timing = Timing(NOW_S, 500, PACE, aged_led={"": 1})
    assert [w.key for w in by_due(waiting, timing)] == [2, 1, 0, 3]
    assert [w.key for w in by_due(waiting, replace(timing, aged_led={"a": 1}))] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("patiences", "in_a_row", "standing"),
    [
        (0.99, 0, Standing.LATE),
        (1.0, 0, Standing.AGED),
        (1.0, 1, Standing.LATE),
        (1.99, 1, Standing.LATE),
        (2.0, 1, Standing.AGED),
        (2.0, 2, Standing.AGED),
        (2.0, 3, Standing.LATE),
        (99.0, 3, Standing.LATE),
    ],
)
def test_who_has_waited_long_may_lead_so_many_batches_in_a_row(
    patiences: float, in_a_row: int, standing: Standing
) -> None:
    timing = Timing(NOW_S, 500, PACE, aged_led={"": in_a_row})
    assert timing.standing(_waiting(0, 10, -1.0, patiences * PATIENCE_S)) is standing


def test_chunks_and_the_decode_steps_between_them_count() -> None:
    waiting = [_waiting(0, 1000, 1.05), _waiting(1, 10, 9.0)]
    assert _keys(waiting) == [0, 1]
    assert _keys(waiting, Pace(0.04, 0.001)) == [1, 0]
    assert _keys(waiting, replace(PACE, between_s=0.06)) == [1, 0]
    assert _keys(waiting, replace(PACE, between_s=0.06), 1000) == [0, 1]


def test_while_the_pace_is_not_known_only_who_is_late_already_is_late() -> None:
    assert _keys([_waiting(0, 10**6, -0.001), _waiting(1, 10**6, 0.001)], UNKNOWN) == [1, 0]


dues = st.none() | st.floats(-2, 4)
prompts = st.builds(
    lambda tokens, for_s, due_in_s, started, cached, tenant: Waiting(
        0,
        tokens,
        NOW_S - for_s,
        started,
        tenant,
        None if due_in_s is None else NOW_S + due_in_s,
        0 if started else cached % tokens,
    ),
    st.integers(1, 2500),
    st.floats(0, 40),
    dues,
    st.booleans(),
    st.integers(0, 2500),
    st.sampled_from(["", "a"]),
)


def _numbered(found: list[Waiting]) -> list[Waiting]:
    return [replace(w, key=k) for k, w in enumerate(sorted(found, key=lambda w: w.queued_at_s))]


queues = st.lists(prompts, max_size=25).map(_numbered)
paces = st.builds(Pace, st.floats(0, 0.05), st.floats(0, 0.003), between_s=st.floats(0, 0.05))
rules = st.builds(PrefillRules, st.integers(1, 2048), st.floats(0, 0.2), st.floats(0.1, 1.0), st.integers(1, 16))


@given(queues, paces, st.integers(1, 1000))
def test_nobody_is_lost_and_the_order_is_that_of_the_rules(waiting: list[Waiting], pace: Pace, chunk: int) -> None:
    timing = Timing(NOW_S, chunk, pace)
    found = by_due(waiting, timing)
    assert sorted(w.key for w in found) == [w.key for w in waiting]
    groups = {standing: [w for w in found if timing.standing(w) is standing] for standing in Standing}
    if any(w.due_s is not None for w in waiting):
        assert found == [w for standing in Standing for w in groups[standing]]
    for standing in (Standing.AGED, Standing.LATE):
        assert [w.key for w in groups[standing]] == sorted(w.key for w in groups[standing])
    known = [w.queued_at_s if w.due_s is None else w.due_s for w in groups[Standing.ON_TIME]]
    assert known == sorted(known)
    assert all(w.due_s is not None for w in groups[Standing.LATE])


@given(queues, rules, paces)
def test_a_batch_makes_nobody_in_it_late_and_delays_nobody_for_the_late(
    waiting: list[Waiting], rules: PrefillRules, pace: Pace
) -> None:
    timing = Timing(NOW_S, rules.chunk_tokens, pace)
    order = FairShares().order(by_due(waiting, timing))
    keys = [key for key, _ in plan_prefill(order, NOW_S, rules, timing).batch]
    assert bool(keys) or all(w.queued_at_s + rules.wait_s > NOW_S for w in waiting)
    inside = [w for w in waiting if w.key in keys]
    ends_s = timing.batch_end_s(sum(timing.computed_tokens(w) for w in inside))
    assert all(ends_s <= timing.end_by_s(w) + 1e-9 for w in inside)
    late = {w.key for w in waiting if timing.standing(w) is Standing.LATE}
    if late & set(keys[1:]):
        assert {w.key for w in waiting} - late <= set(keys)


def _batch(*waiting: Waiting, pace: Pace = PACE) -> list[int]:
    timing = Timing(NOW_S, RULES.chunk_tokens, pace)
    return [key for key, _ in plan_prefill(by_due(list(waiting), timing), NOW_S, RULES, timing).batch]


def test_who_would_make_another_late_is_passed_over_for_who_does_not() -> None:
    assert _batch(_waiting(0, 200, 0.38), _waiting(1, 250, 5.0), _waiting(2, 150, 6.0)) == [0, 2]


def test_who_would_come_late_in_the_batch_is_passed_over() -> None:
    assert _batch(_waiting(0, 200, 0.25), _waiting(1, 140, 0.3)) == [0]


def test_the_late_ride_along_only_when_all_the_others_do() -> None:
    late = _waiting(0, 200, -1.0)
    assert _batch(late, _waiting(1, 200, 5.0)) == [1, 0]
    assert _batch(late, _waiting(1, 200, 5.0), _waiting(2, 250, 5.0), _waiting(3, 250, 5.0), _waiting(4, 250, 5.0)) == [
        1,
        2,
        3,
        4,
    ]
    assert _batch(late, _waiting(1, 200, 0.3), _waiting(2, 150, 9.0)) == [1]  # 2 would make 1 late.
    assert _batch(late, _waiting(1, 200, 5.0), _waiting(2, 20, 9.0)) == [1]  # 2 has another length.


def test_the_late_of_one_tenant_get_room_after_those_on_time_of_another() -> None:
    order = [_waiting(0, 200, 5.0), _waiting(1, 200, -1.0), _waiting(2, 200, 5.0)]
    assert [key for key, _ in plan_prefill(order, NOW_S, RULES, Timing(NOW_S, 500, PACE)).batch] == [0, 2, 1]


def test_where_all_are_late_batches_are_as_full_as_ever() -> None:
    assert _batch(*[_waiting(i, 200, -1.0) for i in range(6)]) == [0, 1, 2, 3, 4]


def test_the_first_chunk_leaves_the_time_that_the_others_need() -> None:
    long = _waiting(0, 900, 1.0)
    assert _batch(long, _waiting(1, 90, 9.0)) == [0, 1]
    assert _batch(long, _waiting(1, 110, 9.0)) == [0]
    assert _batch(long, _waiting(1, 90, 9.0), pace=replace(PACE, between_s=0.02)) == [0]


def test_a_tenants_share_does_not_depend_on_its_dues() -> None:
    """Order prompts of one tenant by due time, and tenants by what each has got."""
    waiting = [replace(_waiting(i, 400, 9.0 - i), tenant="many") for i in range(6)]
    waiting.append(replace(_waiting(6, 400, 20.0), tenant="one"))
    order = [w.key for w in FairShares().order(by_due(waiting, Timing(NOW_S, 500, PACE)))]
    assert [k for k in order if k != 6] == [5, 4, 3, 2, 1, 0]
    assert order.index(6) == 1


# ---- Nothing is due ----


def _first_come(waiting: list[Waiting], rules: PrefillRules) -> list[tuple[int, int]]:
    """Return the batch that is made if nothing is due: the first prompt leads, and all that may
    join take the room that is left.
    """
    leader, batch, room = waiting[0], list[tuple[int, int]](), rules.budget_tokens
    others = [w for w in waiting[1:] if bucket(w.tokens_left) == bucket(leader.tokens_left)]
    if leader.tokens_left > rules.chunk_tokens:
        others = sorted(waiting[1:], key=lambda w: w.tokens_left > rules.chunk_tokens)
    for w in (leader, *others):
        take = min(w.tokens_left, rules.chunk_tokens)
        if take <= room and len(batch) < rules.max_sequences:
            batch.append((w.key, take))
            room -= take
    return batch


@given(queues.filter(bool), rules, paces)
def test_where_nothing_is_due_the_first_come_are_served_first(
    waiting: list[Waiting], rules: PrefillRules, pace: Pace
) -> None:
    waiting = [replace(w, due_s=None) for w in waiting]
    timing = Timing(NOW_S, rules.chunk_tokens, pace)
    assert by_due(waiting, timing) == waiting
    plan = plan_prefill(waiting, NOW_S, rules, timing)
    assert plan == plan_prefill(waiting, NOW_S, rules)
    if waiting[0].queued_at_s + rules.wait_s <= NOW_S:
        assert list(plan.batch) == _first_come(waiting, rules)


# ---- The purpose ----


def _on_time(limit_s: Callable[[int], float | None]) -> int:
    """Return how many of 120 prompts, which arrive at one and a half times the pace, get their
    first token within a second.
    """
    coming = [(i / 30, 50) for i in range(120)]
    rules, left, now_s, count = replace(RULES, budget_tokens=100), dict[int, Waiting](), 0.0, 0
    while coming or left:
        while coming and coming[0][0] <= now_s:
            at_s, tokens = coming.pop(0)
            key, limit = 120 - len(coming), limit_s(tokens)
            left[key] = Waiting(key, tokens, at_s, due_s=None if limit is None else at_s + limit)
        timing = Timing(now_s, 50, PACE)
        batch = plan_prefill(by_due(list(left.values()), timing), now_s, rules, timing).batch
        now_s = now_s + PACE.batch_s(sum(n for _, n in batch)) if batch else now_s + 0.01
        count += sum(now_s <= left.pop(key).queued_at_s + 1.0 + 1e-9 for key, _ in batch)
    return count


def test_in_a_burst_only_the_excess_is_late() -> None:
    assert _on_time(lambda _: None) < 70
    assert _on_time(lambda _: 1.0) >= 90


@settings(max_examples=examples(30))
@given(queues.filter(bool), rules, paces)
def test_a_queue_that_nothing_joins_is_computed_whole(waiting: list[Waiting], rules: PrefillRules, pace: Pace) -> None:
    left, now_s = {w.key: w for w in waiting}, NOW_S
    for _ in range(sum(-(-w.tokens_left // rules.chunk_tokens) for w in waiting)):
        if not left:
            break
        now_s += 0.3
        timing = Timing(now_s, rules.chunk_tokens, pace)
        order = by_due(sorted(left.values(), key=lambda w: w.key), timing)
        batch = plan_prefill(order, now_s, rules, timing).batch
        assert batch[0][0] == order[0].key
        for key, n in batch:
            w = left.pop(key)
            if w.tokens_left > n:
                left[key] = replace(
                    w, tokens_left=w.tokens_left - n, started=True, cached_tokens=max(0, w.cached_tokens - n)
                )
    assert not left
