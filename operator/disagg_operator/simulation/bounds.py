"""Bounds of the cost of a trace: no policy can beat the first, the others know the future.

They are the fluid bound, the cheapest fixed fleet, and a plan from the true arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.simulation.cluster import DECODE, PREFILL, Cluster, Setup
from disagg_operator.simulation.score import Score, score
from disagg_operator.simulation.traces import Trace

_PER_POOL = 0.995  # of each pool's objective
_UTILISATIONS = (0.1, 1.0)  # between which a plan with foresight tries


@dataclass(frozen=True, slots=True)
class Bound:
    """A score and the plan that reached it."""

    plan: str  # in words
    score: Score


def fluid_gpu_hours(trace: Trace, setup: Setup) -> float:
    """Return the GPU-hours of a fleet that is always as large as the work.

    Prefill computes full batches, and every output token comes at the best batch within the
    objective: there is no rounding, queueing or cold start.
    """
    p = setup.profile
    work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(np.float64)
    tokens, squares = work.sum(), (work * work).sum()
    prefill_s = p.a_s * tokens / p.batch_tokens + p.b_s_per_token * tokens + p.c_s_per_token2 * squares
    kv = trace.prompt_tokens + trace.output_tokens / 2
    output = trace.output_tokens.astype(np.float64)
    held = float((kv * output).sum() / output.sum())  # what a running sequence holds, by time
    decode_s = float(output.sum()) / p.decode_tokens_per_s(setup.tpot_s, held)
    return (float(prefill_s) + decode_s) * p.gpus / 3600


def static(trace: Trace, setup: Setup) -> Bound:
    """Return the cheapest fixed fleet that keeps 99.5 % of each objective, known with hindsight."""

    def fixed(prefill: int, decode: int) -> Score:
        sized = replace(setup, initial=(prefill, decode))
        return score(Cluster(trace, sized).run(lambda _: Targets(prefill, decode)))

    prefill = _least(setup, PREFILL, lambda n: fixed(n, setup.most).ttft_attainment)
    decode = _least(setup, DECODE, lambda n: fixed(prefill, n).tpot_attainment)
    return Bound(f"{prefill} prefill and {decode} decode workers", fixed(prefill, decode))


def _least(setup: Setup, kind: int, attained: Callable[[int], float]) -> int:
    """Return the fewest workers that keep the objective."""
    low, high = setup.least(kind), setup.most
    while low < high:
        middle = (low + high) // 2
        if attained(middle) >= _PER_POOL:
            high = middle
        else:
            low = middle + 1
    return low


def oracle(trace: Trace, setup: Setup, stays_s: tuple[float, ...] = (0.0, 300.0, 900.0), rounds: int = 6) -> Bound:
    """Return the cheapest plan from the true arrivals that keeps 99.5 % of each objective.

    Each pool has workers for the work that will come in, one cold start ahead, at a utilisation of
    its own, and keeps each for at least one of the `stays_s`. That is an upper bound of the
    optimum.
    """
    work = _true_work(trace, setup)

    def serve(used: list[float], stay_s: float) -> Bound:
        plans = [_plan(w, u, setup, stay_s, kind) for kind, (w, u) in enumerate(zip(work, used, strict=True))]
        sized = replace(setup, initial=(int(plans[0][0]), int(plans[1][0])))
        result = score(Cluster(trace, sized).run(_follow(plans, setup)))
        return Bound(f"utilisation {used[0]:.2f} and {used[1]:.2f}, stay {stay_s:.0f} s", result)

    found: list[Bound] = []
    for stay_s in stays_s:
        found += _tried(partial(serve, stay_s=stay_s), rounds)
    return _cheapest(found)


def _kept(result: Score) -> bool:
    return min(result.ttft_attainment, result.tpot_attainment) >= _PER_POOL


def _cheapest(found: list[Bound]) -> Bound:
    """Return the cheapest that keeps the objectives; if none does, what misses them least."""
    keeping = [bound for bound in found if _kept(bound.score)]
    if keeping:
        return min(keeping, key=lambda bound: bound.score.gpu_hours)
    return max(found, key=lambda bound: min(bound.score.ttft_attainment, bound.score.tpot_attainment))


def _tried(serve: Callable[[list[float]], Bound], rounds: int) -> list[Bound]:
    """Return what was tried: utilisations halved towards the most that each pool bears.

    Then they are lowered as long as both pools together do not keep the objectives.
    """
    low, high = [_UTILISATIONS[0]] * 2, [_UTILISATIONS[1]] * 2
    tried: list[Bound] = []
    for i in range(2 * rounds):
        used = [(a + b) / 2 for a, b in zip(low, high, strict=True)] if i < rounds else list(low)
        tried.append(serve(used))
        result = tried[-1].score
        if i >= rounds and _kept(result):
            break
        for pool, attained in enumerate((result.ttft_attainment, result.tpot_attainment)):
            if i >= rounds:
                low[pool] *= 1.0 if attained >= _PER_POOL else 0.97
            elif attained >= _PER_POOL:
                low[pool] = used[pool]
            else:
                high[pool] = used[pool]
    return tried


def _follow(plans: list[Any], setup: Setup) -> Callable[[Observation], Targets]:
    def policy(o: Observation) -> Targets:
        i = min(int(o.now_s / setup.interval_s), len(plans[0]) - 1)
        return Targets(int(plans[0][i]), int(plans[1][i]))

    return policy


def _true_work(trace: Trace, setup: Setup) -> tuple[Any, Any]:
    """Return the work of each scrape, in workers, as a fleet with room for all sees it.

    Each value is the mean of a minute around the scrape.
    """
    p = setup.profile
    sized = replace(setup, initial=(setup.most, setup.most))
    series = Cluster(trace, sized).run(lambda _: Targets(setup.most, setup.most)).series
    requests, tokens = series["arrivals"], series["prompt_tokens"]
    squares = np.zeros(len(tokens))
    work = np.maximum(trace.prompt_tokens - trace.cached_tokens, 1).astype(np.float64)
    at = np.minimum((trace.arrival_s / setup.interval_s).astype(int), len(tokens) - 1)
    np.add.at(squares, at, work * work)
    batches = np.minimum(requests, 1.15 * tokens / p.batch_tokens)
    prefill = (p.a_s * batches + p.b_s_per_token * tokens + p.c_s_per_token2 * squares) / setup.interval_s
    kv = float((trace.prompt_tokens + trace.output_tokens / 2).mean())
    decode = series["generated_tokens"] / setup.interval_s / p.decode_tokens_per_s(0.97 * setup.tpot_s, kv)
    around = np.ones(4) / 4
    return np.convolve(prefill, around, "same"), np.convolve(decode, around, "same")


def _plan(work: Any, utilisation: float, setup: Setup, stay_s: float, kind: int = PREFILL) -> Any:
    """Return the workers at each scrape."""
    n = np.ceil(work / utilisation - 1e-9).clip(setup.least(kind), setup.most)
    ahead = math.ceil(setup.cold_start_s[1] / setup.interval_s) + 1
    behind = int(stay_s / setup.interval_s)
    padded = np.concatenate([np.full(behind, n[0]), n, np.full(ahead, n[-1])])
    return np.lib.stride_tricks.sliding_window_view(padded, ahead + behind + 1).max(axis=1)
