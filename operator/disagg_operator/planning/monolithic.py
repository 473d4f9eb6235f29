"""PURE: The size of the smallest monolithic pool, whose replicas both prefill and decode.

Prompts are computed in chunks between decode steps. A chunk delays every running stream by its own
time. The number of chunks that a stream meets has a Poisson distribution, and its time per token is
that of the steps and of those chunks. Small chunks delay streams less but have a larger fixed cost;
the size that needs the fewest replicas is chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disagg_operator.performance.hardware import Gpu
from disagg_operator.performance.profile import Profile
from disagg_operator.planning.capacity import Infeasible, PoolPlan, sequences_held
from disagg_operator.planning.queueing import MOST_REPLICAS, least, poisson_quantile, wait_s
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

CHUNKS_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)
_LEAST_IDLE = 0.02
_TURNS = 20
_MANY = 1e9


@dataclass(frozen=True, slots=True)
class Mixed:
    """The state of one replica at its share of the traffic."""

    streams: float
    """The number of running streams at the percentile."""
    ttft_s: float
    tpot_s: float
    utilisation: float


@dataclass(frozen=True, slots=True)
class Together:
    """A monolithic pool with its latencies at the percentile."""

    pool: PoolPlan
    """The pool; its `batch` is the number of running streams."""
    ttft_s: float
    tpot_s: float
    chunk_tokens: int
    """The number of prompt tokens that are computed in one step."""


def mixed(
    traffic: Traffic, objectives: LatencyObjectives, profile: Profile, chunk_tokens: int, replicas: int
) -> Mixed | None:
    """Return the state of one of `replicas` replicas, or None if it is overloaded."""
    p, prompt = profile, traffic.prompt
    chunk = min(chunk_tokens, prompt.mean)
    # A chunk attends to the whole prompt before it. Per token this takes c * n on average over the
    # prompts, weighted by length.
    chunk_s = p.b_s_per_token * chunk + p.c_s_per_token2 * chunk * prompt.second_moment / prompt.mean
    chunks_per_s = traffic.requests_per_s / replicas * prompt.mean / chunk
    tokens_per_s = traffic.output_tokens_per_s / replicas
    chunked = chunks_per_s * (chunk_s + p.a_s)
    found = _steady(p, chunked, tokens_per_s, traffic.held_tokens)
    if found is None:
        return None
    idle, mean_s = found
    streams = tokens_per_s * mean_s
    chunk_s += p.unread_s(streams)  # a chunk reads all weights, including those that the streams don't use
    most = max(1.0, streams + objectives.z * math.sqrt(streams))
    step_s = p.step_s(most, most * traffic.held_tokens)
    met = chunks_per_s * traffic.output.mean * mean_s
    tpot_s = step_s + poisson_quantile(met, objectives.percentile) * (chunk_s + p.a_s) / traffic.output.mean
    turn_s = step_s + p.a_s + chunk_s + p.lone_s(chunk, chunk * prompt.second_moment / prompt.mean)
    service_s = prompt.mean / chunk * turn_s
    queue_s = wait_s(
        traffic.requests_per_s, service_s, prompt.variance / prompt.mean**2, replicas, objectives.percentile
    )
    ttft_s = p.overhead_s + queue_s + max(1.0, prompt.tail / chunk) * turn_s
    return Mixed(most, ttft_s, tpot_s, 1 - idle)


def _steady(profile: Profile, chunked: float, tokens_per_s: float, held_tokens: float) -> tuple[float, float] | None:
    """Return the share of idle time, and the mean seconds of a step including the delay by chunks.

    Returns None if there is hardly any idle time. Each iteration uses the tangent of the step at
    the result of the previous one, starting where all weights are read. This is Newton's method on
    a concave curve, so the results decrease to the root.
    """
    sequences, idle, mean_s = _MANY, 0.0, 0.0
    for turn in range(_TURNS):
        p = profile.around(sequences)
        idle = 1 - chunked - tokens_per_s * (p.e_s_per_sequence + p.f_s_per_token * held_tokens)
        if turn == 0 and idle <= _LEAST_IDLE:
            return None
        mean_s = p.d_s / idle  # solves mean = step(tokens_per_s * mean) + chunked * mean
        if p is profile or abs(tokens_per_s * mean_s - sequences) <= 1e-6 * sequences:
            break
        sequences = tokens_per_s * mean_s
    return idle, mean_s


def monolithic_pool(
    traffic: Traffic, objectives: LatencyObjectives, gpu: Gpu, profile: Profile
) -> Together | Infeasible:
    """Return the pool with the fewest replicas over all chunk sizes."""
    room = min(sequences_held(traffic, profile), profile.max_running)
    best: Together | None = None
    for chunk_tokens in CHUNKS_TOKENS:

        def good(n: int, chunk_tokens: int = chunk_tokens) -> bool:
            m = mixed(traffic, objectives, profile, chunk_tokens, n)
            return (
                m is not None and m.ttft_s <= objectives.ttft_s and m.tpot_s <= objectives.tpot_s and m.streams <= room
            )

        most = best.pool.replicas - 1 if best else MOST_REPLICAS
        n = least(good, 1, most) if most >= 1 else None
        found = mixed(traffic, objectives, profile, chunk_tokens, n) if n is not None else None
        if n is not None and found is not None:
            pool = PoolPlan(
                "both",
                gpu,
                profile.around(found.streams),
                n,
                math.ceil(found.streams),
                found.utilisation,
                "ttft and tpot",
            )
            best = Together(pool, found.ttft_s, found.tpot_s, chunk_tokens)
    return best if best is not None else _why(traffic, objectives, gpu, profile, room)


def _why(traffic: Traffic, objectives: LatencyObjectives, gpu: Gpu, profile: Profile, room: float) -> Infeasible:
    where = f"{profile.gpus} x {gpu.name}"
    if room < 1:
        held = traffic.prompt.mean + traffic.output.mean
        return Infeasible(
            "memory",
            f"a request of {held:.0f} tokens does not fit in the cache of {profile.request_tokens:.0f} tokens "
            f"of {where}",
        )
    idle = [m for c in CHUNKS_TOKENS if (m := mixed(traffic.at(1e-6), objectives, profile, c, 1)) is not None]
    ttft_s = min((m.ttft_s for m in idle), default=math.inf)
    tpot_s = min((m.tpot_s for m in idle), default=math.inf)
    if ttft_s > objectives.ttft_s:
        return Infeasible(
            "ttft",
            f"{traffic.prompt.tail:.0f} prompt tokens take {ttft_s:.2f} s even alone on {where}, "
            f"{objectives.ttft_s:g} s is asked",
        )
    if tpot_s > objectives.tpot_s:
        return Infeasible(
            "tpot",
            f"a token takes {1e3 * tpot_s:.1f} ms even alone on {where}, {1e3 * objectives.tpot_s:g} ms is asked",
        )
    return Infeasible("tpot", f"no chunk size keeps both objectives beside other requests on {where}")
