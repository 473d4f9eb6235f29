"""The rate from which two pools are cheaper than one, found by simulation.

The search begins at the crossover of the formulas and goes on, rate by rate, until two pools are
cheaper at one rate and not at the next lower one. It needs the `simulate` extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from disagg_operator.performance.model_shape import PlanError
from disagg_operator.planning.deployment_plan import Plan, best_disaggregated, best_monolithic, cost_of
from disagg_operator.planning.simulation_check import check, poisson
from disagg_operator.planning.traffic import LogNormal

_SECONDS = 120.0  # of arrivals at each rate
_STRIDE = 2  # rates of the formulas that the search skips at first

Row = tuple[float, float, float]


def with_crossover(plan: Plan, prompt: LogNormal, output: LogNormal, say: Callable[[str], None]) -> Plan:
    """Return the plan with a simulated crossover.

    `say` is told each rate before it is simulated.
    """

    def simulated(i: int) -> Row:
        rate = plan.rates[i][0]
        say(f"one pool against two at {rate:.3g} requests/s")
        q = replace(plan.question, traffic=plan.question.traffic.at(rate))
        here = check(
            replace(plan, question=q, disaggregated=best_disaggregated(q), monolithic=best_monolithic(q)),
            poisson(rate, prompt, output, _SECONDS),
        )
        return rate, cost_of(here.disaggregated), cost_of(here.monolithic)

    start = next((i for i, row in enumerate(plan.rates) if row[0] == plan.crossover_per_s), len(plan.rates) - 1)
    found = search(simulated, len(plan.rates), start)
    rows = tuple(found[i] for i in sorted(found))
    cheaper = None
    for rate, apart, together in reversed(rows):
        if apart >= together:
            break
        cheaper = rate
    return replace(plan, crossover_per_s=cheaper, simulated_rates=rows)


def search(simulated: Callable[[int], Row], rates: int, start: int) -> dict[int, Row]:
    """Return the rows of the rates that were simulated, by index.

    Among them are the first rate at which two pools are cheaper and the one below it, if there are
    such. A rate that the simulator has no room for ends the search upwards.
    """
    found: dict[int, Row] = {}

    def cheaper(i: int) -> bool:
        if i not in found:
            found[i] = simulated(i)
        return found[i][1] < found[i][2]

    high, top = start, rates - 1
    while True:  # downwards from a rate that is too high for the simulator
        try:
            at_start = cheaper(high)
            break
        except PlanError:
            if high == 0:
                raise
            high = top = max(0, high - _STRIDE)
    low = high
    if at_start:
        while low > 0 and cheaper(max(0, low - _STRIDE)):
            high = low = max(0, low - _STRIDE)
        low = max(0, low - _STRIDE)
    else:
        while high < top:
            low, high = high, min(top, high + _STRIDE)
            try:
                if cheaper(high):
                    break
            except PlanError:
                break
    if high - low > 1 and high in found:
        cheaper((low + high) // 2)
    return found
