"""Bounds, scores and policies by name, on a small day."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.performance.profile import PROFILES
from disagg_operator.simulation import bounds, policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score
from disagg_operator.simulation.traces import Trace

PROFILE = PROFILES["70b-h100-tp4"]
SETUP = Setup(PROFILE, most=20)


def day(seed: int = 0) -> Trace:
    """An hour and a half of a load that grows fivefold and comes back."""
    r = np.random.default_rng(seed)
    at = np.sort(r.uniform(0, 5400.0, 130_000))
    at = at[r.random(len(at)) < 0.2 + 0.8 * np.sin(np.pi * at / 5400) ** 2]
    return Trace("day", at, r.integers(50, 2500, len(at)), np.zeros(len(at), int), r.integers(2, 500, len(at)))


@pytest.mark.slow
def test_the_bounds_are_in_order_and_keep_the_objectives() -> None:
    trace = day()
    fluid = bounds.fluid_gpu_hours(trace, SETUP)
    fixed, foresight = bounds.static(trace, SETUP), bounds.oracle(trace, SETUP, stays_s=(0.0,))
    assert fluid < foresight.score.gpu_hours < fixed.score.gpu_hours
    for bound in (fixed, foresight):
        assert bound.score.ttft_attainment >= 0.995
        assert bound.score.tpot_attainment >= 0.995
    prefill, decode = (int(word) for word in fixed.plan.split() if word.isdigit())
    for p, d in ((prefill - 1, decode), (prefill, decode - 1)):
        less = score(Cluster(trace, replace(SETUP, initial=(p, d))).run(lambda _, p=p, d=d: Targets(p, d)))  # type: ignore[misc]
        assert min(less.ttft_attainment, less.tpot_attainment) < 0.995  # the cheapest


def test_a_plan_holds_its_utilisation_one_cold_start_ahead_and_stays() -> None:
    work = np.array([1.0, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0])
    setup = replace(SETUP, cold_start_s=(10.0, 15.0))  # two scrapes ahead, one of them for its lag
    assert bounds._plan(work, 0.5, setup, 0.0).tolist() == [2, 8, 8, 8, 2, 2, 2, 2]
    assert bounds._plan(work, 0.7, setup, 30.0).tolist() == [2, 6, 6, 6, 6, 6, 2, 2]
    assert bounds._plan(np.full(3, 90.0), 0.5, setup, 0.0).max() == SETUP.most


def test_foresight_keeps_both_objectives_together_also_where_the_pools_bear_each_other() -> None:
    """Alone each pool bears more than both together; the bound is the cheapest that kept both."""
    any_score = score(Cluster(day().part(0, 700), SETUP).run(lambda _: Targets(2, 2)))

    def serve(used: list[float]) -> bounds.Bound:
        ttft = 1.0 if used[0] <= 0.8 else 0.9
        tpot = 1.0 if used[1] <= (0.6 if used[0] > 0.7 else 0.9) else 0.9
        result = replace(any_score, ttft_attainment=ttft, tpot_attainment=tpot, gpu_hours=1 / used[0] + 1 / used[1])
        return bounds.Bound(f"{used}", result)

    tried = bounds._tried(serve, 6)
    best = bounds._cheapest(tried)
    assert (best.score.ttft_attainment, best.score.tpot_attainment) == (1.0, 1.0)
    assert best.score.gpu_hours == pytest.approx(1 / 0.8 + 1 / 0.6, rel=0.04)
    none = [replace(b, score=replace(b.score, tpot_attainment=0.5 + 0.01 * i)) for i, b in enumerate(tried)]
    assert bounds._cheapest(none) is none[-1]


def test_a_fixed_fleet_costs_its_workers_and_the_first_ten_minutes_are_not_scored() -> None:
    r = np.random.default_rng(1)
    at = np.sort(r.uniform(0, 1800, 6000))
    trace = Trace("t", at, np.where(at < 500, 30_000, 200), np.zeros(len(at), int), np.full(len(at), 5))
    result = score(Cluster(trace, replace(SETUP, initial=(3, 2), drop_s=5.0)).run(policies.make("static:3,2", SETUP)))
    assert result.gpu_hours == pytest.approx(5 * 4 * 0.5, rel=0.01)
    assert result.dropped > 100
    assert result.attainment == 1.0
    assert result.requests == len(trace)


def test_policies_by_name() -> None:
    assert policies.names(SETUP)[0] == policies.PREDICTIVE
    for name in policies.names(SETUP):
        assert callable(policies.make(name, SETUP))
    with pytest.raises(policies.PolicyError, match="'magic' is none of predictive, static:PREFILL,DECODE, APA"):
        policies.make("magic", SETUP)


def test_a_wrong_profile_is_learned_away() -> None:
    """With a profile that says workers are twice as fast as they are, the policy ends where it ends with the right one."""
    halved = ("a_s", "b_s_per_token", "d_s", "e_s_per_sequence")
    trace, wrong = day(), replace(PROFILE, **{name: getattr(PROFILE, name) / 2 for name in halved})

    def run(**changes: object) -> float:
        policy = policies.Predictive(replace(policies.settings_of(SETUP), **changes))  # type: ignore[arg-type]
        result = score(Cluster(trace, SETUP).run(policy))
        return result.gpu_hours * (1 + 40 * max(0.0, 0.99 - result.attainment))

    right = run()
    assert run(profile=wrong) == pytest.approx(right, rel=0.1)
    assert run(profile=wrong, learn=False) > 1.05 * right
