"""The check of a plan by simulation, which corrects its numbers of replicas.

The simulator serves a trace request by request on fixed pools, the smallest that meet the
objectives over the whole trace. `disagg simulate` shows how much autoscaling saves beyond that.

It needs the `simulate` extra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.performance.model_shape import PlanError
from disagg_operator.performance.profile import Profile
from disagg_operator.planning.capacity import Infeasible, resized
from disagg_operator.planning.deployment_plan import Deployment, Plan, Question
from disagg_operator.planning.queueing import least
from disagg_operator.planning.traffic import LogNormal, Traffic, of_samples
from disagg_operator.simulation import monolithic_workers
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.traces import Trace

_PEAK_S = 300.0
_MOST = 400  # replicas of a pool in the simulator, which leaves room for those that drain
_ENOUGH = 64


def traffic_of(trace: Trace, percentile: float) -> Traffic:
    """Return the traffic of a trace: its lengths, at the rate of its busiest five minutes.

    Cached prompt tokens do not count, because they cause no work.
    """
    span_s = max(trace.span_s, 1.0)
    rate = len(trace) / span_s
    if span_s > _PEAK_S:
        rate = float(np.bincount((trace.arrival_s / _PEAK_S).astype(int)).max()) / _PEAK_S
    work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1)
    return Traffic(rate, of_samples(work.tolist(), percentile), of_samples(trace.output_tokens.tolist(), percentile))


def poisson(rate_per_s: float, prompt: LogNormal, output: LogNormal, seconds: float = 900.0, seed: int = 0) -> Trace:
    """Return a trace of independent requests: at least 2,000, at most 300,000."""
    n = int(min(300_000, max(2_000, rate_per_s * seconds)))
    random = np.random.default_rng(seed)
    arrival = np.cumsum(random.exponential(1 / rate_per_s, n))

    def lengths(d: LogNormal) -> Any:
        return np.maximum(1, np.rint(random.lognormal(d.mu, d.sigma, n) if d.sigma else np.full(n, d.mean))).astype(
            np.int64
        )

    return Trace(f"Poisson {rate_per_s:g}/s", arrival, lengths(prompt), np.zeros(n, np.int64), lengths(output))


def check(plan: Plan, trace: Trace) -> Plan:
    """Return the plan with the numbers of replicas that meet the objectives on a trace.

    Raises PlanError if the simulator can't hold that many replicas.
    """
    q = plan.question
    apart, together = plan.disaggregated, plan.monolithic
    if isinstance(apart, Deployment):
        apart = _apart(q, apart, trace)
    if isinstance(together, Deployment):
        together = _together(q, together, trace)
    return replace(plan, disaggregated=apart, monolithic=together, simulated=True)


def _merged(d: Deployment, q: Question) -> Profile:
    """Return one profile for the simulator, with the prefill of one pool and the decode of another.

    The first pool of the deployment prefills, the second one decodes.
    """
    p, e = (pool.profile for pool in d.pools)
    tokens = q.traffic.prompt.mean
    handover_s = e.handover_s + q.kv.exposed_s(tokens, p.isolated_s(tokens))
    # The simulator only knows the coefficients of a batch, so the time of a short prompt to read
    # weights is part of the overhead.
    overhead_s = p.overhead_s + p.isolated_s(tokens) - p.prefill_s(tokens, tokens * tokens)
    return replace(
        e, a_s=p.a_s, b_s_per_token=p.b_s_per_token, c_s_per_token2=p.c_s_per_token2, overhead_s=overhead_s,
        batch_wait_s=p.batch_wait_s, batch_full_tokens=p.batch_full_tokens, batch_tokens=d.pools[0].batch,
        max_running=d.pools[1].batch, handover_s=handover_s,
    )  # fmt: skip


def _apart(q: Question, d: Deployment, trace: Trace) -> Deployment | Infeasible:
    profile, o = _merged(d, q), q.objectives

    def times(prefill: int, decode: int) -> tuple[float, float]:
        setup = Setup(
            profile, tpot_s=o.tpot_s, ttft_least_s=o.ttft_s, ttft_factor=0.0, most=_MOST, initial=(prefill, decode),
            interval_s=60.0, drop_s=math.inf, aligned=True,
        )  # fmt: skip
        s = Cluster(trace, setup).run(lambda _: Targets(prefill, decode)).requests
        return _percentiles(trace, s.first_s, s.last_s, o.percentile)

    roomy = min(_MOST, 2 * d.pools[1].replicas + _ENOUGH)
    prefill = _count(lambda n: times(n, roomy)[0] <= o.ttft_s, d.pools[0].replicas)
    if prefill is None:
        return Infeasible("ttft", f"simulated: {_MOST} prefill replicas do not keep {o.ttft_s:g} s on {trace.name}")
    decode = _count(lambda n: times(prefill, n)[1] <= o.tpot_s, d.pools[1].replicas)
    if decode is None:
        return Infeasible(
            "tpot", f"simulated: {_MOST} decode replicas do not keep {1e3 * o.tpot_s:g} ms on {trace.name}"
        )
    ttft_s, tpot_s = times(prefill, decode)
    pools = resized(d.pools[0], prefill), resized(d.pools[1], decode)
    return replace(d, pools=pools, ttft_s=ttft_s, tpot_s=tpot_s, cost_per_hour=sum(map(q.cost, pools)))


def _together(q: Question, d: Deployment, trace: Trace) -> Deployment | Infeasible:
    """Return the cheapest monolithic deployment that meets the objectives on a trace.

    Real arrivals may need chunks of another size than the formulas, so half and double the planned
    size are also tried.
    """
    found = [_chunked(q, replace(d, chunk_tokens=int(d.chunk_tokens * factor)), trace) for factor in (1, 0.5, 2)]
    good = [f for f in found if isinstance(f, Deployment)]
    return min(good, key=lambda f: f.cost_per_hour) if good else found[0]


def _chunked(q: Question, d: Deployment, trace: Trace) -> Deployment | Infeasible:
    o, pool = q.objectives, d.pools[0]

    def times(n: int) -> tuple[float, float]:
        try:
            served = monolithic_workers.serve(trace, pool.profile, n, d.chunk_tokens)
        except ValueError as error:
            raise PlanError(f"trace: {error}") from None
        return _percentiles(trace, served.first_s, served.last_s, o.percentile)

    def good(n: int) -> bool:
        ttft_s, tpot_s = times(n)
        return ttft_s <= o.ttft_s and tpot_s <= o.tpot_s

    n = _count(good, pool.replicas)
    if n is None:
        return Infeasible("ttft", f"simulated: {_MOST} replicas do not keep both objectives on {trace.name}")
    ttft_s, tpot_s = times(n)
    found = resized(pool, n)
    return replace(d, pools=(found,), ttft_s=ttft_s, tpot_s=tpot_s, cost_per_hour=q.cost(found))


def _percentiles(trace: Trace, first_s: Any, last_s: Any, percentile: float) -> tuple[float, float]:
    """Return TTFT and TPOT in seconds at the percentile. Unserved requests count as infinite."""
    ttft = np.where(np.isnan(first_s), np.inf, first_s - trace.arrival_s)
    many = trace.output_tokens > 1
    tpot = np.where(np.isnan(last_s), np.inf, last_s - first_s)[many] / (trace.output_tokens - 1)[many]
    found = [float(np.quantile(x, percentile, method="higher")) if len(x) else 0.0 for x in (ttft, tpot)]
    return found[0], found[1]


def _count(good: Callable[[int], bool], planned: int) -> int | None:
    """Return the smallest good number of replicas; the search starts around the planned number."""
    if planned > _MOST:
        raise PlanError(f"simulate: {planned} replicas are planned, the simulator has places for {_MOST}")
    low = max(1, planned // 2)
    if low > 1 and good(low):
        low = 1
    return least(good, low, _MOST)
