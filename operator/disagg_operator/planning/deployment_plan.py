"""PURE: the cheapest deployment of either kind over the GPUs at hand, which of the two wins, and
from what rate on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from disagg_operator.performance.hardware import Gpu, Network
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import Efficiency, estimates
from disagg_operator.planning.capacity import Infeasible, Kv, PoolPlan, Sized, decode_pool, prefill_pool
from disagg_operator.planning.monolithic import Together, monolithic_pool
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

_RATES_PER_DECADE = 8
LOWEST_PER_S = 0.1
Kind = Literal["disaggregated", "monolithic", "none"]


@dataclass(frozen=True, slots=True)
class Deployment:
    """One or two pools with what a user sees of them at the percentile.

    `cost_per_hour`: in the currency of the prices, or GPUs.

    `transfer_s`: the whole KV cache of a typical prompt, `exposed_s`: what of the tail prompt's is
    not hidden behind prefill.
    """

    pools: tuple[PoolPlan, ...]
    ttft_s: float
    tpot_s: float
    transfer_s: float
    exposed_s: float
    cost_per_hour: float
    chunk_tokens: int = 0

    @property
    def gpus(self) -> int:
        return sum(p.gpus for p in self.pools)


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be served, how well, and with what.

    `prices_per_hour`: of one GPU, by name; without prices each GPU counts one. `measured`: profiles
    by GPU name, instead of the estimates. `prefill_gpus`, `decode_gpus`: names that a pool may use;
    empty: all.
    """

    model: ModelShape
    traffic: Traffic
    objectives: LatencyObjectives
    gpus: tuple[Gpu, ...]
    network: Network
    prices_per_hour: Mapping[str, float] = field(default_factory=dict)
    efficiency: Efficiency = field(default_factory=Efficiency)
    measured: Mapping[str, Sequence[Profile]] = field(default_factory=dict)
    prefill_gpus: frozenset[str] = frozenset()
    decode_gpus: frozenset[str] = frozenset()

    def options(self, allowed: frozenset[str] = frozenset()) -> list[tuple[Gpu, Profile]]:
        """Every replica that can be made."""
        held = self.traffic.prompt.mean + self.traffic.output.mean
        return [
            (g, p)
            for g in self.gpus
            if not allowed or g.name in allowed
            for p in self.measured.get(g.name) or estimates(self.model, g, self.efficiency, held)
        ]

    def cost(self, pool: PoolPlan) -> float:
        return pool.gpus * self.prices_per_hour.get(pool.gpu.name, 1.0)

    @property
    def kv(self) -> Kv:
        return Kv(self.model, self.network)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer.

    `crossover_per_s`: the lowest rate from which on disaggregation is the cheaper at every rate
    tried; None: it never is. `rates`: (requests/s, cost disaggregated, cost monolithic), infinite
    where infeasible.
    """

    question: Question
    disaggregated: Deployment | Infeasible
    monolithic: Deployment | Infeasible
    crossover_per_s: float | None
    rates: tuple[tuple[float, float, float], ...]
    simulated: bool = False

    @property
    def recommended(self) -> Kind:
        """The cheaper of what is feasible; the simpler one of equals."""
        apart, together = cost_of(self.disaggregated), cost_of(self.monolithic)
        if apart == together == math.inf:
            return "none"
        return "disaggregated" if apart < together else "monolithic"

    @property
    def chosen(self) -> Deployment | None:
        found = self.disaggregated if self.recommended == "disaggregated" else self.monolithic
        return found if isinstance(found, Deployment) else None


def cost_of(d: Deployment | Infeasible) -> float:
    return d.cost_per_hour if isinstance(d, Deployment) else math.inf


def together_from(q: Question, p: Sized, d: Sized, exposed_s: float) -> Deployment:
    transfer_s = q.kv.alone_s(q.traffic.prompt.mean)
    return Deployment(
        (p.pool, d.pool), p.latency_s, d.latency_s, transfer_s, exposed_s, q.cost(p.pool) + q.cost(d.pool)
    )


def best_disaggregated(q: Question) -> Deployment | Infeasible:
    """The cheapest prefill pool with the cheapest decode pool of the same vendor; they meet in the
    KV transfer, which delays the second token.
    """
    found = [_of_vendor(q, vendor) for vendor in sorted({g.vendor for g in q.gpus})]
    good = [d for d in found if isinstance(d, Deployment)]
    return (
        min(good, key=lambda d: (d.cost_per_hour, d.ttft_s))
        if good
        else _nearest([d for d in found if isinstance(d, Infeasible)])
    )


def _of_vendor(q: Question, vendor: str) -> Deployment | Infeasible:
    makes = [(g, p) for g, p in q.options(q.prefill_gpus) if g.vendor == vendor]
    takes = [(g, p) for g, p in q.options(q.decode_gpus) if g.vendor == vendor]
    prefills = [prefill_pool(q.traffic, q.objectives, g, p, q.kv) for g, p in makes]
    if isinstance(best := _cheapest(q, prefills), Infeasible):
        return best
    found: list[Deployment] = []
    why: list[Infeasible] = []
    # A costlier prefill pool that computes longer hides more of a transfer; the cheapest pair is
    # found among all.
    for prefill in prefills:
        if isinstance(prefill, Infeasible):
            continue
        tail = q.traffic.prompt.tail
        exposed_s = q.kv.exposed_s(tail, prefill.pool.profile.isolated_s(tail))
        decode = _cheapest(q, [decode_pool(q.traffic, q.objectives, g, p, q.kv, exposed_s) for g, p in takes])
        if isinstance(decode, Infeasible):
            why.append(decode)
        else:
            found.append(together_from(q, prefill, decode, exposed_s))
    return min(found, key=lambda d: (d.cost_per_hour, d.ttft_s)) if found else _nearest(why)


def _cheapest(q: Question, found: Sequence[Sized | Infeasible]) -> Sized | Infeasible:
    good = [f for f in found if isinstance(f, Sized)]
    if good:
        return min(good, key=lambda f: (q.cost(f.pool), f.latency_s))
    bad = [f for f in found if isinstance(f, Infeasible)]
    return _nearest(bad) if bad else _too_large(q)


def _nearest(found: Sequence[Infeasible]) -> Infeasible:
    """Of several reasons the last: options go from small replicas to large ones, so it is that of
    the strongest.
    """
    return found[-1]


def best_monolithic(q: Question) -> Deployment | Infeasible:
    """The cheapest single pool."""
    found = [monolithic_pool(q.traffic, q.objectives, g, p) for g, p in q.options()]
    good = [f for f in found if isinstance(f, Together)]
    if not good:
        bad = [f for f in found if isinstance(f, Infeasible)]
        return _nearest(bad) if bad else _too_large(q)
    best = min(good, key=lambda f: (q.cost(f.pool), f.ttft_s))
    return Deployment((best.pool,), best.ttft_s, best.tpot_s, 0.0, 0.0, q.cost(best.pool), best.chunk_tokens)


def _too_large(q: Question) -> Infeasible:
    names = ", ".join(g.name for g in q.gpus)
    return Infeasible(
        "memory", f"{q.model.weight_bytes / 1e9:.0f} GB of weights and a cache fit no replica of one node of {names}"
    )


def make_plan(q: Question, highest_per_s: float = 1000.0) -> Plan:
    """Plan the question's traffic, and the costs over rates from 0.1/s to `highest_per_s` for the
    crossover.
    """
    rates = []
    highest_per_s = max(highest_per_s, 10 * LOWEST_PER_S)
    steps = max(1, round(_RATES_PER_DECADE * math.log10(highest_per_s / LOWEST_PER_S)))
    for i in range(steps + 1):
        rate = LOWEST_PER_S * (highest_per_s / LOWEST_PER_S) ** (i / steps)
        at = replace(q, traffic=q.traffic.at(rate))
        rates.append((rate, cost_of(best_disaggregated(at)), cost_of(best_monolithic(at))))
    crossover = None
    for rate, apart, together in reversed(rates):
        if apart >= together:
            break
        crossover = rate
    return Plan(q, best_disaggregated(q), best_monolithic(q), crossover, tuple(rates))
