"""Rollouts in tables: what the planner does next in states that users know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from disagg_operator.rollout.planner import plan
from disagg_operator.rollout.values import (
    Devices,
    Progress,
    RolloutPlan,
    RolloutRules,
    RolloutState,
    Workers,
)
from disagg_wire.roles import ROLES

GPU = Devices("gpu", 1)
ONE = RolloutRules(surge={"prefill": 1, "decode": 1}, unavailable={"prefill": 0, "decode": 0})
NONE = RolloutRules(surge={"prefill": 0, "decode": 0}, unavailable={"prefill": 0, "decode": 0})


def ready(role: str, revision: str, count: int, **more: Any) -> Workers:
    values = {"desired": count, "existing": count, "ready": count, "served": True, "compat": revision, "devices": GPU}
    return Workers(role, revision, **{**values, **more})


def starting(role: str, revision: str, count: int, **more: Any) -> Workers:
    return ready(role, revision, count, **{"ready": 0, "served": False, "compat": "", **more})


def leaving(role: str, revision: str, count: int, terminating: int) -> Workers:
    return ready(role, revision, count, terminating=terminating)


def state(*workers: Workers, size: tuple[int, int] = (4, 4), target: Any = "new", **more: Any) -> RolloutState:
    both = {"prefill": target, "decode": target} if isinstance(target, str) else target
    sizes = {"prefill": size[0], "decode": size[1]}
    devices = dict.fromkeys(both, GPU)
    return RolloutState(
        workers, both, sizes, frozenset({("old", "old"), ("new", "new")}), target_devices=devices, **more
    )


def numbers(found: RolloutPlan) -> dict[str, tuple[int, int]]:
    """Return the (prefill, decode) replicas by revision, without those of 0."""
    out = {
        revision: tuple(found.replicas.get((role, revision), 0) for role in ("prefill", "decode"))
        for _, revision in sorted(found.replicas)
    }
    return {revision: (p, d) for revision, (p, d) in out.items() if p or d}


OLD = (ready("prefill", "old", 4), ready("decode", "old", 4))
OLD_PAIR = (ready("prefill", "old", 1), ready("decode", "old", 1))
PAIR = (ready("prefill", "new", 1), ready("decode", "new", 1))


def test_the_first_rollout_starts_all_workers() -> None:
    found = plan(state(linked=False), ONE)
    assert numbers(found) == {"new": (4, 4)}
    assert (found.reason, found.rolling, found.complete) == ("RollingOut", True, False)


def test_a_settled_deployment_is_complete_and_follows_the_size_of_its_pools() -> None:
    settled = state(*OLD, target="old", linked=True)
    found = plan(settled, ONE)
    assert (found.reason, found.complete, found.rolling, found.progress) == ("RolloutComplete", True, False, None)
    assert found.wake_s is None
    assert numbers(plan(replace(settled, wanted={"prefill": 2, "decode": 9}), ONE)) == {"old": (2, 9)}


def test_one_new_pair_comes_first_and_the_old_ones_stay_until_it_has_moved_kv() -> None:
    assert numbers(plan(state(*OLD), ONE)) == {"old": (4, 4), "new": (1, 1)}
    waiting = state(*OLD, *(replace(w, served=False) for w in PAIR), linked=False)
    assert numbers(plan(waiting, ONE)) == {"old": (4, 4), "new": (1, 1)}
    assert numbers(plan(replace(waiting, linked=True), ONE)) == {"old": (3, 3), "new": (1, 1)}


def test_without_a_report_of_a_router_nothing_old_goes_and_the_message_says_so() -> None:
    found = plan(state(*OLD, *(replace(w, served=False) for w in PAIR), linked=None), ONE)
    assert numbers(found) == {"old": (4, 4), "new": (1, 1)}
    assert "no router has reported" in found.message


def test_both_pools_roll_together_and_the_last_old_pair_goes_at_once() -> None:
    middle = [ready(role, revision, n) for revision, n in (("old", 2), ("new", 3)) for role in ("prefill", "decode")]
    assert numbers(plan(state(*middle, linked=True), ONE)) == {"old": (1, 1), "new": (3, 3)}
    last = [ready(role, revision, n) for revision, n in (("old", 1), ("new", 4)) for role in ("prefill", "decode")]
    assert numbers(plan(state(*last, linked=True), ONE)) == {"new": (4, 4)}


def test_a_pool_never_runs_ahead_of_the_other() -> None:
    """Prefill is new everywhere; decode is not: without decode partners the old ones must stay."""
    ahead = [ready("prefill", "old", 1), ready("prefill", "new", 4), ready("decode", "old", 4)]
    found = plan(state(*ahead, starting("decode", "new", 1), linked=True), ONE)
    assert numbers(found)["old"] == (1, 4)


def test_roles_whose_workers_exchange_kv_with_both_roll_alone() -> None:
    same = [replace(w, compat="same") for w in (*OLD, ready("prefill", "new", 1))]
    target = {"prefill": "new", "decode": "old"}
    found = plan(replace(state(*same, target=target, linked=True), pairs=frozenset({("old", "old")})), ONE)
    assert numbers(found) == {"old": (3, 4), "new": (2, 0)}


def test_without_a_spare_gpu_an_old_pair_makes_room_and_terminating_pods_still_hold_theirs() -> None:
    found = plan(state(*OLD), NONE)
    assert numbers(found) == {"old": (3, 3)}
    assert found.reason == "MakingRoom"
    assert "1 prefill and 1 decode" in found.message
    drains = state(leaving("prefill", "old", 3, 1), leaving("decode", "old", 3, 1))
    assert numbers(plan(drains, NONE)) == {"old": (3, 3)}
    gone = state(ready("prefill", "old", 3), ready("decode", "old", 3))
    assert numbers(plan(gone, NONE)) == {"old": (3, 3), "new": (1, 1)}


def test_a_single_prefill_worker_stays_while_decode_makes_room_for_the_new_pair() -> None:
    old = (ready("prefill", "old", 1), ready("decode", "old", 8))
    assert numbers(plan(state(*old, size=(1, 8)), NONE)) == {"old": (1, 6)}
    room = (ready("prefill", "old", 1), ready("decode", "old", 6))
    assert numbers(plan(state(*room, size=(1, 8)), NONE)) == {"old": (1, 6), "new": (1, 1)}


def test_one_pair_without_a_spare_gpu_is_exchanged_at_once() -> None:
    found = plan(state(*OLD_PAIR, size=(1, 1)), NONE)
    assert numbers(found) == {}
    assert (found.reason, found.exchanging) == ("ExchangingPools", True)
    assert "the routers hold the requests" in found.message
    gone = (replace(OLD_PAIR[0], desired=0, existing=0, ready=0, terminating=1),)
    assert sum(numbers(plan(state(*gone, size=(1, 1)), NONE))["new"]) == 1
    assert numbers(plan(state(size=(1, 1)), NONE)) == {"new": (1, 1)}


def test_a_full_cluster_is_noticed_and_said_before_anything_goes() -> None:
    pending = [starting(role, "new", 1, unscheduled=1, unschedulable_since_s=100.0) for role in ("prefill", "decode")]
    found = plan(state(*OLD, *pending, now_s=130.0), ONE)
    assert numbers(found) == {"old": (4, 4), "new": (1, 1)}
    assert found.reason == "WaitingForCapacity"
    assert "both pools are exchanged" in found.message
    assert found.wake_s == 30.0
    found = plan(state(*OLD, *pending, now_s=160.0, progress=found.progress), ONE)
    assert (numbers(found)["old"], found.reason) == ((3, 3), "MakingRoom")
    assert found.progress is not None
    assert (found.progress.held, found.progress.full) == ({"gpu": 8}, frozenset({"gpu"}))


def test_without_a_memory_one_more_look_tells_whether_a_cluster_is_full() -> None:
    pending = [starting(role, "new", 1, unscheduled=1, unschedulable_since_s=100.0) for role in ("prefill", "decode")]
    found = plan(state(*OLD, *pending, now_s=200.0), ONE)
    assert (numbers(found)["old"], found.reason) == ((4, 4), "WaitingForCapacity")
    assert found.wake_s is not None
    found = plan(state(*OLD, *pending, now_s=200.0 + found.wake_s, progress=found.progress), ONE)
    assert (numbers(found)["old"], found.reason) == ((3, 3), "MakingRoom")


def test_the_only_pair_of_a_full_cluster_is_not_given_up_for_workers_that_would_not_fit() -> None:
    big = Devices("gpu", 8)
    pending = [
        starting(role, "new", 1, unscheduled=1, unschedulable_since_s=0.0, devices=big)
        for role in ("prefill", "decode")
    ]
    full = replace(
        state(*OLD_PAIR, *pending, size=(1, 1), now_s=100.0),
        target_devices=dict.fromkeys(("prefill", "decode"), big),
        progress=Progress("new", 0, 90.0, {"gpu": 2}, frozenset({"gpu"})),
    )
    found = plan(full, ONE)
    assert numbers(found)["old"] == (1, 1)
    assert found.reason == "InsufficientCapacity"


def test_gpus_beyond_the_pools_are_limited_over_both_pools() -> None:
    limited = replace(ONE, surge_gpus=1)
    found = plan(state(*OLD), limited)
    assert sum(sum(pair) for pair in numbers(found).values()) <= 9
    assert numbers(plan(state(*OLD), replace(ONE, surge_gpus=2))) == {"old": (4, 4), "new": (1, 1)}


def test_with_recreate_no_new_worker_comes_before_the_last_old_pod_is_gone() -> None:
    recreate = replace(ONE, surge={"prefill": 2, "decode": 2}, recreate=True)
    found = plan(state(*OLD), recreate)
    assert "strategy is Recreate" in found.message
    assert (numbers(found), found.exchanging) == ({}, True)
    drains = state(replace(OLD[1], ready=0, desired=1, existing=0))
    assert numbers(plan(drains, recreate)) == {}
    ends = state(replace(OLD[0], desired=0, existing=0, ready=0, terminating=1))
    assert numbers(plan(ends, recreate)) == {}
    assert numbers(plan(state(), recreate)) == {"new": (4, 4)}


def test_with_recreate_workers_that_drain_come_back_when_the_spec_goes_back() -> None:
    drains = [replace(w, desired=0, existing=0, ready=0, terminating=4, recallable=4) for w in OLD]
    assert numbers(plan(state(*drains, target="old"), replace(ONE, recreate=True))) == {"old": (4, 4)}


def test_a_pool_grows_on_while_it_rolls_and_shrinks_by_its_old_workers() -> None:
    grown = state(*OLD, *PAIR, size=(4, 8), linked=True)
    assert numbers(plan(grown, ONE))["new"][1] >= 4
    unproven = state(*OLD, starting("prefill", "new", 1), starting("decode", "new", 1), size=(4, 8), linked=False)
    assert numbers(plan(unproven, ONE)) == {"old": (4, 8), "new": (1, 1)}
    shrunk = state(*OLD, *PAIR, size=(2, 2), linked=True)
    assert numbers(plan(shrunk, ONE))["old"] == (1, 1)


def test_a_paused_rollout_stands_still_and_follows_the_size_of_its_pools() -> None:
    paused = replace(ONE, paused=True)
    middle = state(*OLD, *PAIR, linked=True, now_s=1e6, progress=Progress("new", 0, 0.0))
    found = plan(middle, paused)
    assert (numbers(found), found.reason) == ({"old": (4, 4), "new": (1, 1)}, "RolloutPaused")
    assert (found.expired, found.wake_s) == (False, None)
    assert numbers(plan(replace(middle, wanted={"prefill": 6, "decode": 4}), paused))["old"] == (5, 4)
    assert numbers(plan(replace(middle, wanted={"prefill": 3, "decode": 3}), paused))["old"] == (3, 3)


def test_a_revert_keeps_the_workers_that_serve_and_drops_those_that_never_did() -> None:
    broken = (starting("prefill", "new", 1), starting("decode", "new", 1))
    found = plan(state(*OLD, *broken, target="old", linked=True), ONE)
    assert numbers(found) == {"old": (4, 4)}
    half = [ready(role, revision, 2) for revision in ("old", "new") for role in ("prefill", "decode")]
    found = plan(state(*half, target="old", linked=True), ONE)
    assert numbers(found) == {"old": (3, 3), "new": (2, 2)}


@pytest.mark.parametrize(("recallable", "kept"), [(1, 3), (0, 2)])
def test_a_revert_calls_back_who_drains_although_there_is_no_room_for_another_worker(
    recallable: int, kept: int
) -> None:
    roles = ("prefill", "decode")
    old = [replace(ready(role, "old", 2), terminating=1, recallable=recallable) for role in roles]
    new = [ready(role, "new", 2) for role in roles]
    found = plan(state(*old, *new, target="old", linked=True), ONE)
    assert numbers(found) == {"old": (kept, kept), "new": (2, 2)}


def test_an_edit_of_what_never_served_replaces_it_at_once() -> None:
    never = (starting("prefill", "old", 4), starting("decode", "old", 4))
    found = plan(state(*never), NONE)
    assert numbers(found) == {}
    assert numbers(plan(state(*never), ONE)) == {"new": (1, 1)}


def test_old_workers_that_are_unready_for_a_moment_are_not_taken_for_useless() -> None:
    shaky = (ready("prefill", "old", 4, ready=0), ready("decode", "old", 4))
    assert numbers(plan(state(*shaky, *PAIR, linked=True), ONE))["old"][0] >= 3


@pytest.mark.parametrize("terminating", [0, 1])
def test_the_deadline_is_one_of_progress_and_waits_for_drains(terminating: int) -> None:
    old = (leaving("prefill", "old", 4, terminating), ready("decode", "old", 4))
    broken = (starting("prefill", "new", 1), starting("decode", "new", 1))
    first = plan(state(*old, *broken, now_s=10.0), replace(ONE, deadline_s=100.0))
    assert first.progress is not None
    assert (first.expired, first.progress.since_s) == (False, 10.0)
    same = replace(state(*old, *broken, now_s=120.0), progress=first.progress)
    late = plan(same, replace(ONE, deadline_s=100.0))
    assert late.expired is (terminating == 0)
    assert (late.reason == "ProgressDeadlineExceeded") is (terminating == 0)
    better = (replace(broken[0], ready=1), broken[1])
    on = plan(replace(state(*old, *better, now_s=120.0), progress=first.progress), replace(ONE, deadline_s=100.0))
    assert on.progress is not None
    assert (on.expired, on.progress.since_s) == (False, 120.0)


def test_pools_of_size_0_have_no_workers_of_any_revision() -> None:
    found = plan(state(*OLD, *PAIR, size=(0, 0), linked=True), ONE)
    assert numbers(found) == {}


def test_without_workers_nothing_proves_itself() -> None:
    """What is declared while both pools have the size 0 has not served when they come back."""
    gone = tuple(replace(w, desired=0, existing=0, ready=0) for w in OLD_PAIR)
    at_zero = plan(state(*gone, size=(0, 0), linked=True), ONE)
    assert (at_zero.proven, at_zero.complete, at_zero.progress) == (False, True, None)
    assert plan(state(*gone, size=(0, 0), target="old"), ONE).proven
    woken = plan(state(*gone, size=(2, 2)), ONE)
    assert (numbers(woken), woken.proven) == ({"new": (2, 2)}, False)
    broken = (starting("prefill", "new", 2), starting("decode", "new", 2))
    late = plan(
        replace(state(*gone, *broken, size=(2, 2), now_s=120.0), progress=Progress("new", 4, 10.0)),
        replace(ONE, deadline_s=100.0),
    )
    assert late.expired


def test_decode_without_prefill_rolls_alone() -> None:
    alone = (ready("decode", "old", 4), starting("decode", "new", 1, ready=1))
    assert numbers(plan(state(*alone, size=(0, 4), linked=False), ONE)) == {"old": (0, 3), "new": (0, 2)}


def test_a_full_cluster_with_three_revisions_gives_one_of_them_up() -> None:
    """No step keeps the whole share, so the numbers of the roles decide."""
    three = [
        ready("prefill", "old", 1), ready("decode", "old", 1), ready("prefill", "mid", 1), ready("decode", "mid", 1),
        ready("prefill", "new", 1), ready("decode", "new", 2),
    ]  # fmt: skip
    found = plan(state(*three, size=(2, 3), linked=True), ONE)
    assert sum(numbers(found).get(revision, (0, 0))[0] for revision in ("old", "mid")) == 1


def many(**counts: tuple[int, int]) -> list[Workers]:
    """Return ready workers by revision, as (prefill, decode)."""
    return [ready(role, name, n) for name, pair in counts.items() for role, n in zip(ROLES, pair, strict=True) if n]


def numbers_of(workers: list[Workers]) -> dict[str, tuple[int, int]]:
    counts = {w.key: w.desired for w in workers}
    return {
        w.revision: (counts.get(("prefill", w.revision), 0), counts.get(("decode", w.revision), 0)) for w in workers
    }


def full(held: int) -> Progress:
    """Return the memory of a cluster that has no more than so many GPUs."""
    return Progress("new", 0, 0.0, {"gpu": held}, frozenset({"gpu"}))


@pytest.mark.parametrize(
    ("size", "workers", "held", "after"),
    [
        pytest.param((2, 3), many(old=(1, 2), new=(1, 3)), None, [{"old": (1, 1), "new": (1, 3)}], id="decode shrank"),
        pytest.param((3, 2), many(old=(2, 1), new=(3, 1)), None, [{"old": (1, 1), "new": (3, 1)}], id="prefill shrank"),
        pytest.param(
            (1, 3),
            many(old=(1, 1), mid=(1, 1), new=(1, 1)),
            None,
            [{"old": (1, 1), "new": (1, 1)}, {"mid": (1, 1), "new": (1, 1)}],
            id="three revisions, of which one goes as a whole",
        ),
        pytest.param(
            (2, 3),
            many(old=(1, 1), mid=(1, 1), new=(2, 1)),
            None,
            [{"old": (1, 1), "new": (2, 1)}, {"mid": (1, 1), "new": (2, 1)}],
            id="three revisions, and decode lags behind",
        ),
        pytest.param((3, 2), many(old=(1, 1), new=(1, 2)), 5, [{"new": (1, 2)}], id="no room, and the new pair stays"),
    ],
)
def test_where_the_floors_forbid_every_step_one_is_taken_that_leaves_a_pair(
    size: tuple[int, int], workers: list[Workers], held: int | None, after: list[dict[str, tuple[int, int]]]
) -> None:
    stuck = state(*workers, size=size, linked=True, progress=None if held is None else full(held))
    found = plan(stuck, ONE)
    assert numbers(found) in after
    assert (found.rolling, found.exchanging) == (True, False)
    # While something changes by itself, the floors hold.
    last = workers[-1]
    for busy in (replace(last, terminating=1), replace(last, ready=last.ready - 1)):
        waits = replace(stuck, workers=(*workers[:-1], busy))
        assert numbers(plan(waits, ONE)) == numbers_of(workers)


def test_a_new_worker_without_partner_makes_room_for_it_if_nothing_else_can() -> None:
    """Decode shrank when its new workers were there; no prefill worker is there to prove them."""
    lone = ready("decode", "new", 2, served=False)
    stuck = state(*many(old=(1, 2)), lone, size=(1, 2), linked=False)
    assert numbers(plan(stuck, ONE)) == {"old": (1, 2), "new": (0, 1)}
    one_less = replace(stuck, workers=(*many(old=(1, 2)), ready("decode", "new", 1, served=False)))
    assert numbers(plan(one_less, ONE)) == {"old": (1, 2), "new": (1, 1)}


def test_of_two_old_revisions_one_goes_if_the_new_one_finds_no_room_to_be_tried() -> None:
    waiting = ready("decode", "new", 1, served=False)
    stuck = state(*many(old=(1, 1), mid=(1, 1)), waiting, size=(1, 2), linked=False)
    (serves,) = set(numbers(plan(stuck, ONE))) - {"new"}
    assert numbers(plan(stuck, ONE)) == {serves: (1, 1), "new": (0, 1)}
    freed = numbers(plan(replace(stuck, workers=(*many(**{serves: (1, 1)}), waiting)), ONE))
    assert (freed["new"], set(freed)) == ((1, 1), {serves, "new"})


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3)])
def test_the_only_pair_that_a_cluster_can_run_is_exchanged_whatever_the_pools_should_have(
    size: tuple[int, int],
) -> None:
    found = plan(state(*many(old=(1, 1)), size=size, linked=False, progress=full(2)), ONE)
    assert found.exchanging
    assert "old" not in numbers(found)


@pytest.mark.parametrize("size", [(4, 4), (6, 6), (8, 8)])
def test_in_a_full_cluster_the_floors_are_those_of_the_workers_that_fit(size: tuple[int, int]) -> None:
    """Floors of the size that is wanted would forbid each step to pools that never had it."""
    workers, least = list(OLD), 4
    for _ in range(20):
        found = plan(state(*workers, size=size, linked=True, progress=full(8)), ONE)
        if set(numbers(found)) == {"new"}:
            break
        assert sum(sum(pair) for pair in numbers(found).values()) <= 8
        workers = many(**numbers(found))
        least = min(least, sum(min(pair) for pair in numbers(found).values()))
    else:
        raise AssertionError(f"no end: {numbers(found)}")
    assert least == 3
