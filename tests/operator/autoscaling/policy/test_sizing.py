"""The price of a missed objective: its causes, and how long they last."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.autoscaling.policy.cluster import RULES, drive, steady

from disagg_operator.autoscaling.policy import forecast
from disagg_operator.autoscaling.policy.forecast import Forecaster
from disagg_operator.autoscaling.policy.memory import Peak, PoolLimits, PoolState, Settings
from disagg_operator.autoscaling.policy.miss_curve import MissCurve
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.sizing import Outlook, PoolSizing, hold, join, limit_of, plan, price_of


def test_misses_raise_the_price_and_with_it_the_size() -> None:
    calm, state = steady()
    missing, _ = drive(RULES, lambda _: 40.0, 600, state, (calm.prefill, calm.decode), 3600, change=lambda o: replace(
        o, prefill=replace(o.prefill, ttft_ok=0.8 * o.prefill.ttft_total)))  # fmt: skip
    assert missing[-1].numbers["prefill_price"] > 2 * calm.numbers["prefill_price"]
    assert missing[-1].prefill > calm.prefill
    assert missing[-1].decode <= calm.decode  # the other pool has its own budget


def test_what_was_missed_in_a_storm_is_soon_forgotten() -> None:
    """Otherwise workers for the storm would be paid for long after it."""

    def storm(o: Observation) -> Observation:
        missed = 0.5 if 3600 <= o.now_s < 3660 else 0.0
        return replace(o, prefill=replace(o.prefill, ttft_ok=o.prefill.ttft_total * (1 - missed)))

    targets, _ = drive(RULES, lambda _: 40.0, 3 * 3600, sizes=(8, 8), change=storm)
    before, after, later = (targets[int(s / 15)].numbers["prefill_price"] for s in (3500, 3700, 3600 + 5400))
    assert after > 4 * before
    assert later < 2 * before


SHARES = MissCurve(0.2, 0.2).shares()
RATIOS = forecast.ratios(Forecaster())


TEN = PoolLimits(1, 10)


def sizing(wanted: int, expected: float = 3.0, limits: PoolLimits = TEN, *, known: bool = True) -> PoolSizing:
    shares, ratios = (SHARES, RATIOS) if known else ([], [])
    return PoolSizing(Pods(4, 4), limits, wanted, "as wanted", expected, expected, 8.0, shares, ratios)


@given(st.floats(0.01, 60), st.integers(1, 40))
def test_the_best_number_costs_least_and_holds_the_work(expected: float, most: int) -> None:
    pool = sizing(0, expected, PoolLimits(1, most))
    n = pool.best()
    assert n == min(most, max(n, math.ceil(expected)))
    assert all(pool.loss(n) <= pool.loss(other) for other in range(math.ceil(expected), most + 1))


def test_with_fewer_workers_more_requests_miss_and_without_any_all_do() -> None:
    pool = sizing(0)
    misses = [pool.misses(n) for n in range(8)]
    assert misses[0] == 1.0
    assert misses == sorted(misses, reverse=True)
    assert sizing(0, known=False).misses(1) == 0.0
    assert sizing(0, known=False).loss(5) == 5


@pytest.mark.parametrize(("replicas", "to"), [(0, 2), (5, 5), (50, 9)])
def test_a_pool_of_which_nothing_is_known_stays_within_its_bounds(replicas: int, to: int) -> None:
    held = hold(Pods(replicas, replicas), PoolLimits(2, 9), "why")
    assert (held.wanted, held.need, held.ahead, held.reason) == (to, to, to, "why")


def seen(rate: float, pool: PoolState | None = None) -> PoolState:
    demand = forecast.update(Forecaster(), 0.0, 15.0, rate, RULES.tuning)
    return replace(pool or PoolState(), demand=demand)


def planned(
    rate: float,
    replicas: int,
    rules: Settings = RULES,
    pool: PoolState | None = None,
    pods: Pods | None = None,
    now_s: float = 1000.0,
    backlog: float = 0.0,
) -> PoolSizing:
    pods = pods or Pods(replicas, replicas)
    o = Observation(now_s, 15.0, PrefillSignals(pods), DecodeSignals(pods))
    return plan(rules, "prefill", o, seen(rate, pool), Outlook(75.0, 45.0, 40.0, backlog))[0]


def test_work_that_comes_is_met_by_workers_and_the_reason_says_so() -> None:
    found = planned(6.0, 4)
    assert found.wanted > 6
    assert found.reason.startswith("6.00 workers of work expected in 120 s, and 150 s of one worker's work that waits")
    assert planned(6.0, 7).reason.startswith("6.00 workers of work expected in 120 s; ")
    assert found.wanted == 14 < found.need
    assert found.ahead >= found.need


@given(st.floats(0.1, 20.0), st.floats(0.0, 1000.0), st.floats(0.0, 1000.0))
def test_the_more_waits_the_more_workers_are_worth_it(rate: float, less: float, more: float) -> None:
    less, more = sorted((less, more))
    few, many = (planned(rate, 40, backlog=waits) for waits in (less, more))
    assert few.need <= many.need
    assert all(few.misses(n) <= many.misses(n) <= 1.0 for n in range(1, 41))


def test_the_first_of_many_workers_find_out_whether_there_is_room() -> None:
    one, waits = Pods(1, 1), 900.0
    first = planned(3.0, 1, pods=one, backlog=waits)
    assert (first.wanted, first.need > 11) == (11, True)
    before = PoolState(wanted=((985.0, first.need),))
    starting = Pods(11, 1, starting_ages_s=(15.0,) * 10)
    assert planned(3.0, 11, pool=before, pods=starting).wanted == first.need
    refused = replace(starting, unplaced_s=(15.0,) * 4)
    assert planned(3.0, 11, pool=before, pods=refused).wanted == 11
    assert planned(40.0, 20, rules=replace(RULES, prefill=PoolLimits(1, 99))).wanted <= 40


def test_workers_are_kept_for_longer_in_a_cluster_that_is_full() -> None:
    pods, lately = Pods(6, 6), PoolState(wanted=((500.0, 6),))
    o = Observation(1000.0, 15.0, PrefillSignals(pods), DecodeSignals(pods))
    wanted = [
        plan(RULES, "prefill", o, seen(1.0, lately), Outlook(75.0, 45.0, 40.0, full=full))[0].wanted
        for full in (False, True)
    ]
    assert wanted[0] < wanted[1] == 6


def test_enough_workers_stay_and_too_many_go() -> None:
    need = planned(6.0, 12).need
    assert (planned(6.0, need).wanted, planned(6.0, need).reason) == (need, "enough")
    fewer = planned(1.0, 12)
    assert fewer.wanted < 12
    assert "without" in fewer.reason


def test_what_was_wanted_lately_is_held() -> None:
    held = planned(1.0, 12, pool=PoolState(wanted=((990.0, 9), (100.0, 40))))
    assert held.wanted == 9


PEAK = replace(RULES, peaks=(Peak(23 * 3600.0, 3600.0, prefill=20), Peak(0.0, 60.0, prefill=10)))


@pytest.mark.parametrize(
    ("hour", "scheduled"), [(12, 0), (22, 0), (22.98, 20), (23, 20), (23.5, 20), (24.01, 20), (24.5, 20), (25, 0)]
)
def test_a_peak_is_met_before_it_begins_and_over_midnight(hour: float, scheduled: int) -> None:
    found = planned(1.0, 3, PEAK, now_s=3600.0 * hour)
    assert (found.wanted == 20) == (scheduled == 20)
    assert ("the schedule asks for 20" in found.reason) == (scheduled == 20)


def test_workers_that_can_not_be_placed_are_no_capacity() -> None:
    pods = Pods(8, 3, starting_ages_s=(700.0, 650.0, 10.0))
    assert planned(9.0, 8, pods=pods).lost == 2
    assert planned(9.0, 8, pods=replace(pods, unplaced_s=(700.0, 650.0, 10.0))).lost == 3
    assert planned(9.0, 8, pods=Pods(8, 3, starting_ages_s=(500.0,))).lost == 0


def test_a_running_worker_goes_only_to_a_pool_that_cannot_do_its_work() -> None:
    """Both want more than the budget, and prefill wants it more; decode has what it needs."""
    prefill, decode = sizing(9, 3.9), sizing(6, 2.0)
    assert joined(prefill, decode, gpu_budget=8) == (4, 4)
    short, other = sizing(9, 4.5), sizing(6, 2.0)
    assert joined(short, other, gpu_budget=8) == (5, 3)


def test_a_full_cluster_is_shared_and_who_waits_for_it_is_held() -> None:
    """Eight of ten workers have a node; prefill has more of them than it needs."""
    prefill, decode = sizing(8, 2.0), sizing(9, 4.0)
    prefill.pods, decode.pods = Pods(6, 6), Pods(9, 2)
    decode.lost = 7
    join(RULES, prefill, decode)
    assert prefill.wanted < 6
    assert decode.wanted == 9
    assert "7 of 9 can't be placed" in decode.reason
    wants_less = sizing(3, 2.0)
    wants_less.pods, wants_less.lost = Pods(9, 2), 7
    other = sizing(1, 0.2)
    other.pods = Pods(1, 1)
    join(RULES, other, wants_less)
    assert wants_less.wanted == 3
    assert (decode.limit, limit_of(decode)) == ("ClusterCapacity", "ClusterCapacity")


def test_head_room_for_one_pool_is_no_reason_to_let_the_other_starve() -> None:
    """Of three GPUs, decode needs two for its work; both would like three times as many."""

    def shared(headroom: float, of_decode: float = 1.2) -> tuple[int, int]:
        prefill, decode = sizing(3, 0.26 * headroom), sizing(3, of_decode * headroom)
        prefill.pods, decode.pods = Pods(2, 2), Pods(1, 1)
        prefill.headroom = decode.headroom = headroom
        prefill.flips = decode.flips = True
        join(replace(RULES, gpu_budget=3), prefill, decode)
        return prefill.wanted, decode.wanted

    assert shared(1.0) == shared(3.0) == shared(10.0) == (1, 2)
    # Where the work of both is done, head-room decides.
    assert (shared(1.0, 0.39), shared(3.0, 0.39)) == ((2, 1), (1, 2))


def test_after_a_full_cluster_one_worker_finds_out_whether_there_is_room() -> None:
    prefill, decode = sizing(8, limits=PoolLimits(6, 10)), sizing(4)
    join(RULES, prefill, decode, full=True)
    assert (prefill.wanted, prefill.limit) == (6, "ClusterCapacity")  # never below its bounds
    assert (decode.wanted, decode.limit, limit_of(decode)) == (4, "", "")
    assert limit_of(sizing(10)) == "MaxReplicas"


def test_a_forecast_is_judged_once_the_forecaster_has_watched_for_a_while() -> None:
    pods = Pods(4, 4)
    o = Observation(1000.0, 15.0, PrefillSignals(pods), DecodeSignals(pods))
    looks = (Outlook(75.0, 45.0, 40.0, began_s=b) for b in (900.0, 100.0))
    fresh, known = (plan(RULES, "decode", o, seen(2.0), look)[1] for look in looks)
    assert fresh.demand.made == ()
    assert [due for due, *_ in known.demand.made] == [1120.0]


def test_the_price_rises_above_the_budget_and_falls_below_it() -> None:
    asked = replace(PoolState(), missed=0.0, counted=1e9)
    calm, even, busy = (
        price_of(RULES, replace(asked, missed=share * 1e9), 40.0) for share in (0.0, RULES.budget, 4 * RULES.budget)
    )
    assert even == pytest.approx(RULES.price)
    assert calm < even < busy
    assert busy <= RULES.price * math.exp(1.5) + 1e-9


def joined(prefill: PoolSizing, decode: PoolSizing, **rules: Any) -> tuple[int, int]:
    join(replace(RULES, **rules), prefill, decode)
    return prefill.wanted, decode.wanted


@given(
    st.integers(1, 10), st.integers(1, 10), st.floats(0.1, 9), st.floats(0.1, 9), st.none() | st.integers(1, 60),
    st.none() | st.tuples(st.floats(0, 2), st.floats(0.5, 4)), st.booleans(),
)  # fmt: skip
def test_pools_fit_into_budget_and_ratio_wherever_that_is_possible(
    p: int, d: int, p_work: float, d_work: float, budget: int | None, ratio: tuple[float, float] | None, known: bool
) -> None:
    limits = PoolLimits(1, 10, 4), PoolLimits(2, 10, 2)
    low, high = ratio or (0.0, math.inf)

    def fits(a: int, b: int) -> bool:
        return 4 * a + 2 * b <= (math.inf if budget is None else budget) and low * a <= b <= high * a

    prefill, decode = sizing(p, p_work, limits[0], known=known), sizing(max(2, d), d_work, limits[1])
    wish = prefill.wanted, decode.wanted
    found = joined(prefill, decode, gpu_budget=budget, ratio=ratio)
    if fits(*wish):
        assert found == wish
    elif any(fits(a, b) for a in range(1, 11) for b in range(2, decode.limits.most + 1)):
        assert fits(*found)
    else:
        assert found == (1, 2)


def test_a_ratio_that_only_more_workers_than_allowed_would_keep_leaves_no_choice() -> None:
    """8 and 15 would keep it, but decode may have 10 at most."""
    prefill = sizing(1, 1.0, PoolLimits(1, 10, 4), known=False)
    decode = sizing(2, 1.0, PoolLimits(2, 10, 2))
    assert joined(prefill, decode, gpu_budget=None, ratio=(1.875, 1.875)) == (1, 2)


def test_the_pair_that_loses_least_is_taken_and_the_reason_is_told() -> None:
    busy, idle = sizing(8, 6.0), sizing(8, 1.0)
    found = joined(busy, idle, gpu_budget=10)
    assert sum(found) <= 10
    assert found[0] > found[1]
    assert "10 GPUs" in busy.reason or "10 GPUs" in idle.reason


def test_a_pool_that_keeps_its_size_keeps_its_reason() -> None:
    few, many = sizing(1, 0.5), sizing(9, 4.0)
    assert joined(few, many, ratio=(0.0, 5.0)) == (2, 9)
    assert "ratio" in few.reason
    assert many.reason == "as wanted"


def test_where_nothing_fits_pools_have_their_smallest_size_and_say_so() -> None:
    prefill, decode = sizing(5, limits=PoolLimits(3, 10)), sizing(5, limits=PoolLimits(3, 10))
    assert joined(prefill, decode, gpu_budget=4) == (3, 3)
    assert "no choice" in prefill.reason


def test_a_pool_that_holds_blindly_gives_less_than_one_that_is_known_to_need_little() -> None:
    blind, _ = joined(sizing(6, known=False), sizing(6, 1.0), gpu_budget=7)
    seeing, _ = joined(sizing(6, 1.0), sizing(6, 1.0), gpu_budget=7)
    assert seeing < blind < 6


def test_workers_that_start_at_once_are_not_held() -> None:
    pods = Pods(9, 9)
    o = Observation(1000.0, 15.0, PrefillSignals(pods), DecodeSignals(pods))
    found, _ = plan(RULES, "prefill", o, seen(1.0, PoolState(wanted=((985.0, 9),))), Outlook(0.0, 45.0, 40.0))
    assert found.wanted == found.need < 9
