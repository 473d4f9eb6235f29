"""PURE: the cheapest deployment of either kind over the GPUs at hand, which of the two wins, and from what rate on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from disagg_operator.planning.capacity import (
    Deployment,
    Infeasible,
    Objectives,
    PoolPlan,
    Traffic,
    decode_pool,
    monolithic,
    prefill_pool,
    profiles,
    transfer_s,
)
from disagg_operator.planning.hardware import Gpu, Network
from disagg_operator.planning.model_shape import ModelShape
from disagg_operator.planning.performance import Efficiency, Profile

_RATES_PER_DECADE = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be served, how well, and with what. `prices_per_hour`: of one GPU, by name; without prices GPUs count one each."""

    model: ModelShape
    traffic: Traffic
    objectives: Objectives
    gpus: tuple[Gpu, ...]
    network: Network
    prices_per_hour: Mapping[str, float]
    efficiency: Efficiency = field(default_factory=Efficiency)
    measured: Mapping[str, Profile] | None = None  # by GPU name: replaces the estimates

    def options(self) -> list[tuple[Gpu, Profile]]:
        if self.measured:
            return [(g, self.measured[g.name]) for g in self.gpus if g.name in self.measured]
        return [(g, p) for g in self.gpus for p in profiles(self.model, g, self.efficiency)]

    def cost(self, pool: PoolPlan) -> float:
        return pool.gpus * self.prices_per_hour.get(pool.gpu.name, 1.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `crossover_per_s`: the lowest rate from which on disaggregation is the cheaper at every rate tried; None: it never is."""

    question: Question
    disaggregated: Deployment | Infeasible
    monolithic: Deployment | Infeasible
    crossover_per_s: float | None
    rates: tuple[tuple[float, float, float], ...]  # (requests/s, cost disaggregated, cost monolithic); inf: infeasible

    @property
    def recommended(self) -> str:
        """`disaggregated`, `monolithic` or `none`."""
        costs = {
            name: d.cost_per_hour
            for name, d in (("monolithic", self.monolithic), ("disaggregated", self.disaggregated))
            if isinstance(d, Deployment)
        }
        return min(costs, key=lambda name: costs[name]) if costs else "none"


def best_disaggregated(q: Question) -> Deployment | Infeasible:
    """The cheapest prefill pool with the cheapest decode pool of the same vendor; they meet only in TTFT, by the KV transfer."""
    moved_s = transfer_s(q.model, q.network, q.traffic.prompt_p99_tokens)
    left_s = q.objectives.ttft_p99_s - moved_s
    if left_s <= 0:
        return Infeasible(f"ttft: the KV of {q.traffic.prompt_p99_tokens:.0f} tokens takes {moved_s:.2f} s over {q.network.name}")
    found = []
    for vendor in sorted({g.vendor for g in q.gpus}):
        options = [(g, p) for g, p in q.options() if g.vendor == vendor]
        prefill = _cheapest(q, [prefill_pool(q.traffic, left_s, g, p) for g, p in options])
        decode = _cheapest(q, [decode_pool(q.traffic, q.objectives.tpot_p99_s, g, p) for g, p in options])
        found.append(_together(q, prefill, decode, moved_s))
    good = [d for d in found if isinstance(d, Deployment)]
    return min(good, key=lambda d: d.cost_per_hour) if good else found[0]


def _together(
    q: Question, prefill: tuple[PoolPlan, float] | Infeasible, decode: tuple[PoolPlan, float] | Infeasible, moved_s: float
) -> Deployment | Infeasible:
    if isinstance(prefill, Infeasible):
        return prefill
    if isinstance(decode, Infeasible):
        return decode
    (p, ttft_s), (d, tpot_s) = prefill, decode
    return Deployment((p, d), ttft_s + moved_s, tpot_s, moved_s, q.cost(p) + q.cost(d))


def best_monolithic(q: Question) -> Deployment | Infeasible:
    """The cheapest single pool."""
    found = [monolithic(q.traffic, q.objectives, g, p) for g, p in q.options()]
    good = [f for f in found if not isinstance(f, Infeasible)]
    if not good:
        return next((f for f in found if isinstance(f, Infeasible)), _too_large(q))
    pool, ttft_s, tpot_s = min(good, key=lambda f: (q.cost(f[0]), f[1]))
    return Deployment((pool,), ttft_s, tpot_s, 0.0, q.cost(pool))


def _too_large(q: Question) -> Infeasible:
    names = ", ".join(g.name for g in q.gpus)
    return Infeasible(f"model: {q.model.weight_bytes / 1e9:.0f} GB of weights and a cache fit no replica of {names}")


def _cheapest(q: Question, found: Sequence[tuple[PoolPlan, float] | Infeasible]) -> tuple[PoolPlan, float] | Infeasible:
    good = [f for f in found if not isinstance(f, Infeasible)]
    if good:
        return min(good, key=lambda f: (q.cost(f[0]), f[1]))
    return next((f for f in found if isinstance(f, Infeasible)), _too_large(q))


def _cost(d: Deployment | Infeasible) -> float:
    return d.cost_per_hour if isinstance(d, Deployment) else math.inf


def make_plan(q: Question, highest_per_s: float = 1000.0) -> Plan:
    """Plan the question's traffic, and the costs over rates from 0.1/s to `highest_per_s` for the crossover."""
    rates = []
    steps = max(1, round(_RATES_PER_DECADE * math.log10(highest_per_s / 0.1)))
    for i in range(steps + 1):
        rate = 0.1 * (highest_per_s / 0.1) ** (i / steps)
        at = replace(q, traffic=q.traffic.scaled(rate))
        rates.append((rate, _cost(best_disaggregated(at)), _cost(best_monolithic(at))))
    crossover = None
    for rate, apart, together in reversed(rates):
        if apart >= together:
            break
        crossover = rate
    return Plan(q, best_disaggregated(q), best_monolithic(q), crossover, tuple(rates))
