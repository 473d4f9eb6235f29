"""Loads that are hard on the predictive policy: steps, ramps, budgets, and what cannot be met."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from tests.operator.autoscaling.policy.cluster import OUTPUT, PROFILE, PROMPT, RULES, drive, look, steady

from disagg_operator.autoscaling.policy.observation import Observation, Pods
from disagg_operator.autoscaling.policy.predictive import PoolLimits, step


def test_what_prefill_will_hand_over_is_decodes_demand_before_it_arrives() -> None:
    """Prefill is full, so decode has no more to do than before."""
    calm, state = steady(10.0)
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    for now in (3615, 3630):
        o = look(now, 100.0, p, d)
        answer, state = step(RULES, replace(o, decode=look(now, 10.0, p, d).decode), state)
    assert answer.numbers["decode_demand"] < 1.5
    assert answer.decode > calm.decode + 2


def test_one_interval_that_overruns_the_workers_is_believed() -> None:
    """Both pools are asked for at once, decode too, which sees nothing of it yet."""
    calm, state = steady(10.0)
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    seen = replace(look(3615, 100.0, p, d), decode=look(3615, 10.0, p, d).decode)
    answer, _ = step(RULES, seen, state)
    queued, _ = step(RULES, replace(seen, prefill=replace(seen.prefill, waiting_tokens=1e6)), state)
    assert answer.numbers["prefill_forecast"] < 5
    assert queued.numbers["prefill_forecast"] > 7
    assert queued.numbers["decode_inflow"] > 11


def test_full_workers_make_no_more_tokens_but_hold_more_sequences() -> None:
    calm, state = steady(40.0)
    p, d = (Pods(n, n, cold_start_s=120.0) for n in (calm.prefill, calm.decode))
    for now in (3615, 3630, 3645):
        o = look(now, 40.0, p, d)
        late = 3 * RULES.tpot_s * o.decode.generated_tokens / o.interval_s  # seconds per token, three times too slow
        answer, state = step(RULES, replace(o, decode=replace(o.decode, running_requests=late)), state)
    assert answer.decode > 1.5 * calm.decode


def test_an_hour_after_a_ramp_the_pools_are_as_in_steady_state() -> None:
    def rate(t: float) -> float:
        return min(100.0, 20.0 + max(0.0, t - 600) * 0.27)

    ramp, _ = drive(RULES, rate, 900 + 3600, sizes=(3, 4))
    rest, _ = drive(RULES, lambda _: 100.0, 3 * 3600, sizes=(10, 15))
    assert ramp[60].prefill > rest[-1].prefill + 3
    assert ramp[-1].prefill <= rest[-1].prefill + 1
    assert ramp[-1].decode <= rest[-1].decode + 1


def test_a_tpot_below_one_step_is_told_and_not_paid_for() -> None:
    def slow(o: Observation) -> Observation:
        return replace(o, decode=replace(o.decode, tpot_ok=0.0))

    hopeless = replace(RULES, tpot_s=0.028)
    targets, state = drive(hopeless, lambda _: 10.0, 7200, sizes=(3, 3), change=slow)
    assert targets[-1].decode <= 4
    assert "0.028 s per token can't be met" in targets[-1].unmet["decode"]
    assert "0.029" in targets[-1].unmet["decode"]
    assert (state.decode.counted, state.decode.missed) == (0.0, 0.0)
    possible, _ = drive(RULES, lambda _: 10.0, 7200, sizes=(3, 3))
    assert possible[-1].unmet == {}
    few, _ = drive(replace(RULES, decode=PoolLimits(1, 2, 4)), lambda _: 40.0, 1800, sizes=(3, 2))
    assert "at most 2 workers are allowed" in few[-1].unmet["decode"]


@pytest.mark.parametrize("budget", [40, 48, 60])
def test_a_budget_starves_no_pool_although_decode_sees_only_what_it_can_do(budget: int) -> None:
    """What decode generates is bounded by its workers, and its backlog grows without end."""
    rules, backlog, made = replace(RULES, gpu_budget=budget), 0.0, 0.0

    def served(o: Observation) -> Observation:
        nonlocal backlog, made
        room = o.decode.pods.ready * 15 * PROFILE.decode_tokens_per_s(0.97 * 0.06, PROMPT + OUTPUT / 2)
        backlog += o.decode.generated_tokens
        made = min(backlog, room)
        backlog -= made
        return replace(
            o, decode=replace(o.decode, generated_tokens=made, waiting_requests=backlog / OUTPUT, tpot_ok=0.0)
        )

    calm, state = drive(rules, lambda _: 3.0, 3600, sizes=(1, 1))
    sizes = calm[-1].prefill, calm[-1].decode
    targets, _ = drive(rules, lambda _: 30.0, 3600, state, sizes, 3600, change=served)
    work = 30 * OUTPUT / PROFILE.decode_tokens_per_s(0.97 * 0.06, PROMPT + OUTPUT / 2)
    for t in targets[12:]:
        assert t.prefill > PROFILE.prefill_work_s(30, 30 * PROMPT, 30 * PROMPT**2)
        assert t.decode > work
        assert 4 * (t.prefill + t.decode) <= budget
    moves = sum((a.prefill, a.decode) != (b.prefill, b.decode) for a, b in itertools.pairwise(targets[12:]))
    assert moves <= 6
