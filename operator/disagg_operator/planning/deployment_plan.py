"""PURE: The plan: the cheapest disaggregated and the cheapest monolithic deployment, compared.

It also finds the request rate from which disaggregation is cheaper.
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
    """A deployment of one or two pools, with its latencies at the percentile."""

    pools: tuple[PoolPlan, ...]
    ttft_s: float
    tpot_s: float
    transfer_s: float
    """The time in seconds to move the whole KV cache of a mean prompt."""
    exposed_s: float
    """The seconds of the transfer of a tail prompt that prefill does not hide."""
    cost_per_hour: float
    """The cost of an hour in the currency of the prices; without prices, the number of GPUs."""
    chunk_tokens: int = 0
    """The prompt tokens that a monolithic deployment computes in one step; 0: disaggregated."""

    @property
    def gpus(self) -> int:
        """The number of GPUs of the deployment."""
        return sum(p.gpus for p in self.pools)


@dataclass(frozen=True, slots=True)
class Question:
    """The inputs of a plan: a model and its traffic, the objectives, and the available hardware."""

    model: ModelShape
    traffic: Traffic
    objectives: LatencyObjectives
    gpus: tuple[Gpu, ...]
    network: Network
    """The network over which KV is moved from prefill to decode."""
    prices_per_hour: Mapping[str, float] = field(default_factory=dict)
    """The price of one GPU by its name; without prices each GPU counts as 1."""
    efficiency: Efficiency = field(default_factory=Efficiency)
    measured: Mapping[str, Sequence[Profile]] = field(default_factory=dict)
    """Measured profiles by the name of the GPU, which replace the estimates."""
    prefill_gpus: frozenset[str] = frozenset()
    """The names of the GPUs that the prefill pool may use; if empty, all."""
    decode_gpus: frozenset[str] = frozenset()
    """The names of the GPUs that the decode pool may use; if empty, all."""

    def options(self, allowed: frozenset[str] = frozenset()) -> list[tuple[Gpu, Profile]]:
        """Return every kind of replica on the allowed GPUs; if `allowed` is empty, on all GPUs."""
        held = self.traffic.prompt.mean + self.traffic.output.mean
        return [
            (g, p)
            for g in self.gpus
            if not allowed or g.name in allowed
            for p in self.measured.get(g.name) or estimates(self.model, g, self.efficiency, held)
        ]

    def cost(self, pool: PoolPlan) -> float:
        """Return the cost of an hour of a pool."""
        return pool.gpus * self.prices_per_hour.get(pool.gpu.name, 1.0)

    @property
    def kv(self) -> Kv:
        return Kv(self.model, self.network)


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a question."""

    question: Question
    disaggregated: Deployment | Infeasible
    monolithic: Deployment | Infeasible
    crossover_per_s: float | None
    """The least requests/s from which disaggregation is cheaper at all tried rates; None: never."""
    rates: tuple[tuple[float, float, float], ...]
    """Requests/s, cost disaggregated and cost monolithic; the cost is infinite if infeasible."""
    simulated: bool = False
    """Whether the numbers of replicas were determined by simulation."""
    simulated_rates: tuple[tuple[float, float, float], ...] = ()
    """As `rates`, simulated; if there are any, they determine the crossover."""

    @property
    def recommended(self) -> Kind:
        """The cheaper feasible kind; the simpler one if both cost the same."""
        apart, together = cost_of(self.disaggregated), cost_of(self.monolithic)
        if apart == together == math.inf:
            return "none"
        return "disaggregated" if apart < together else "monolithic"

    @property
    def chosen(self) -> Deployment | None:
        """The recommended deployment, or None if none is feasible."""
        found = self.disaggregated if self.recommended == "disaggregated" else self.monolithic
        return found if isinstance(found, Deployment) else None


def cost_of(d: Deployment | Infeasible) -> float:
    """Return the cost of an hour of a deployment; infinite if it is infeasible."""
    return d.cost_per_hour if isinstance(d, Deployment) else math.inf


def together_from(q: Question, p: Sized, d: Sized, exposed_s: float) -> Deployment:
    """Combine a prefill pool and a decode pool into a deployment."""
    transfer_s = q.kv.alone_s(q.traffic.prompt.mean)
    return Deployment(
        (p.pool, d.pool), p.latency_s, d.latency_s, transfer_s, exposed_s, q.cost(p.pool) + q.cost(d.pool)
    )


def best_disaggregated(q: Question) -> Deployment | Infeasible:
    """Return the cheapest disaggregated deployment.

    Both pools have GPUs of the same vendor. They depend on each other through the transfer of KV,
    which delays the second token.
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
    # A more expensive prefill pool that computes longer hides more of a transfer, so all pairs are
    # compared.
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
    """Return the last of several reasons, which is that of the most powerful replica.

    The options are ordered from small replicas to large ones.
    """
    return found[-1]


def best_monolithic(q: Question) -> Deployment | Infeasible:
    """Return the cheapest monolithic deployment."""
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
    """Return the plan for the traffic of a question.

    To find the crossover, it also computes the costs at rates from 0.1 requests/s to
    `highest_per_s`.
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
