"""The bounds of a small day."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.operator.simulation.loads import PROFILE, day, stay

from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.simulation import bounds
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score

SETUP = Setup(PROFILE, most=20)


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
        fewer = score(Cluster(trace, replace(SETUP, initial=(p, d))).run(stay))
        assert min(fewer.ttft_attainment, fewer.tpot_attainment) < 0.995  # the cheapest


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
