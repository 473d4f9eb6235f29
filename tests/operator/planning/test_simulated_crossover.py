"""The search for the rate from which two pools are cheaper, and its result in a real simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.planning.questions import question, traffic

from disagg_operator.performance.model_shape import PlanError
from disagg_operator.planning import report
from disagg_operator.planning.deployment_plan import make_plan
from disagg_operator.planning.simulated_crossover import Row, search, with_crossover
from disagg_operator.planning.traffic import log_normal


@given(st.integers(1, 33), st.integers(0, 40), st.integers(0, 33), st.integers(1, 34))
def test_the_first_rate_at_which_two_pools_are_cheaper_is_among_those_simulated(
    rates: int, first: int, start: int, room: int
) -> None:
    def simulated(i: int) -> Row:
        if i >= room:
            raise PlanError("no room")
        return float(i), 1.0 if i >= first else 3.0, 2.0

    found = search(simulated, rates, min(start, rates - 1))
    cheaper = [i for i in found if found[i][1] < found[i][2]]
    assert found
    assert all(i >= first for i in cheaper)
    if cheaper:
        assert min(cheaper) == first or first == 0
        assert first == 0 or first - 1 in found or min(cheaper) == 0
    elif first < min(rates, room):
        assert max(found) + 2 > min(rates, room) - 1 or max(found) < first  # the simulator's room ends it


def test_without_room_for_any_rate_the_reason_is_told() -> None:
    def simulated(i: int) -> Row:
        raise PlanError("no room")

    with pytest.raises(PlanError, match="no room"):
        search(simulated, 9, 5)


@pytest.mark.long
def test_a_plan_gets_the_crossover_that_was_simulated() -> None:
    prompt, output = (4000, 16_000), (500, 2000)
    plan = make_plan(question(traffic=traffic(10, prompt, output), ttft_s=4.0), 100.0)
    said: list[str] = []
    found = with_crossover(plan, log_normal(*prompt, "p"), log_normal(*output, "o"), said.append)
    assert len(said) == len(found.simulated_rates) >= 2
    assert "simulated" in report.crossover(found)
    below = [r for r, apart, together in found.simulated_rates if apart >= together]
    if found.crossover_per_s is not None and below:
        assert max(below) < found.crossover_per_s
