"""Tests of the check by simulation, which agrees with formulas, and of the traffic of traces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.operator.planning.questions import question, traffic

from disagg_operator.planning import simulation_check
from disagg_operator.planning.capacity import Infeasible
from disagg_operator.planning.deployment_plan import Deployment, make_plan
from disagg_operator.planning.traffic import LogNormal, log_normal
from disagg_operator.simulation.traces import Trace

CASES: dict[str, tuple[float, tuple[float, float], tuple[float, float], dict[str, Any]]] = {
    "8b, 20/s": (20, (1000, 4000), (250, 800), {"model": "llama-3.1-8b", "ttft_s": 1.0, "tpot_s": 0.03}),
    "8b, 100/s": (100, (500, 2000), (150, 500), {"model": "llama-3.1-8b", "ttft_s": 0.5, "tpot_s": 0.02}),
    "70b, 50/s": (50, (1000, 4000), (250, 800), {"ttft_s": 2.0, "tpot_s": 0.05}),
    "70b, long prompts": (10, (2000, 8000), (100, 400), {"ttft_s": 3.0, "tpot_s": 0.05}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_formulas_are_within_one_replica_or_a_fifth_of_the_simulation(case: str) -> None:
    rate, prompt, output, asked = CASES[case]
    plan = make_plan(question(traffic=traffic(rate, prompt, output), **asked))
    checked = simulation_check.check(
        plan, simulation_check.poisson(rate, log_normal(*prompt, "p"), log_normal(*output, "o"), 300.0)
    )
    for formula, simulation in ((plan.disaggregated, checked.disaggregated), (plan.monolithic, checked.monolithic)):
        assert isinstance(formula, Deployment)
        assert isinstance(simulation, Deployment)
        assert simulation.ttft_s <= plan.question.objectives.ttft_s
        assert simulation.tpot_s <= plan.question.objectives.tpot_s
        for a, b in zip(formula.pools, simulation.pools, strict=True):
            assert abs(a.replicas - b.replicas) <= max(1, 0.2 * b.replicas)
        assert simulation.cost_per_hour == simulation.gpus


@pytest.mark.slow
def test_what_no_fleet_of_the_simulator_serves_is_infeasible() -> None:
    """The formula is given equal lengths, but each prompt of the trace exceeds the objective."""
    plan = make_plan(question("llama-3.1-8b", traffic=traffic(1.0, (500, 500), (50, 50)), ttft_s=0.2, tpot_s=0.05))
    arrival = np.arange(200.0)
    trace = Trace("long", arrival, np.full(200, 30_000), np.zeros(200, np.int64), np.full(200, 50))
    checked = simulation_check.check(plan, trace)
    assert isinstance(checked.disaggregated, Infeasible) and checked.disaggregated.limit == "ttft"  # noqa: PT018
    assert checked.recommended == "none"


def test_a_trace_counts_at_its_busiest_five_minutes_and_without_cached_tokens() -> None:
    arrival = np.concatenate([np.arange(0, 600, 1.0), np.arange(600, 900, 0.1)])
    n = len(arrival)
    trace = Trace("t", arrival, np.full(n, 100), np.full(n, 40), np.full(n, 7))
    found = simulation_check.traffic_of(trace, 0.99)
    assert found.requests_per_s == pytest.approx(10, rel=0.01)
    assert (found.prompt.mean, found.prompt.tail, found.output.mean) == (60, 60, 7)


def test_a_poisson_trace_has_the_rate_and_the_lengths() -> None:
    trace = simulation_check.poisson(50.0, log_normal(300, 1200, "p"), LogNormal(20, 0.0), 200.0)
    assert len(trace) == 10_000
    assert len(trace) / trace.span_s == pytest.approx(50, rel=0.05)
    assert trace.prompt_tokens.mean() == pytest.approx(300, rel=0.05)
    assert set(trace.output_tokens) == {20}
