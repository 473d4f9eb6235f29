"""PURE: The size of the smallest monolithic pool, whose replicas both prefill and decode.

A step of an engine computes a chunk of the waiting prompts together with one token of every running
stream. The weights are read once for both, and while they are read, the chunk is computed: small
chunks cost nothing but their attention, and large ones hide the reading. A chunk holds several
prompts if they fit.

The number of chunks that a stream meets has a Poisson distribution, and its time per token is that
of the steps and of what the chunks add to them. Small chunks delay streams less, but large ones
compute more of the prompts in each step; the size that needs the fewest replicas is chosen.
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
_HALVINGS = 20


@dataclass(frozen=True, slots=True)
class Mixed:
    """The state of one replica at its share of the traffic."""

    streams: float
    """The number of running streams at the percentile."""
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Together:
    """A monolithic pool with its latencies at the percentile."""

    pool: PoolPlan
    """The pool; its `batch` is the number of running streams."""
    ttft_s: float
    tpot_s: float
    chunk_tokens: int
    """The number of prompt tokens that are computed in one step."""


@dataclass(frozen=True, slots=True)
class _Steady:
    """The steady state of a replica."""

    mean_s: float
    """The mean duration of a step in seconds."""
    chunk: float
    """The number of prompt tokens of a step that has any."""


def mixed(
    traffic: Traffic, objectives: LatencyObjectives, profile: Profile, chunk_tokens: int, replicas: int
) -> Mixed | None:
    """Return the state of one of `replicas` replicas, or None if it is overloaded."""
    p, prompt = profile, traffic.prompt
    found = _steady(p, traffic.at(traffic.requests_per_s / replicas), chunk_tokens)
    if found is None:
        return None
    streams = traffic.output_tokens_per_s / replicas * found.mean_s
    most = max(1.0, streams + objectives.z * math.sqrt(streams))
    step_s = p.step_s(most, most * traffic.held_tokens)
    # Streams are delayed by what they meet: by chunks, or by prompts where a chunk holds several.
    event = min(found.chunk, prompt.mean)
    met = traffic.prompt_tokens_per_s / replicas / event * traffic.output.mean * found.mean_s
    delay_s = p.chunk_s(found.chunk, streams, prompt.mean) * event / found.chunk + _attention_s(p, traffic) * event
    tpot_s = step_s + poisson_quantile(met, objectives.percentile) * delay_s / traffic.output.mean

    full_s = step_s + p.chunk_s(chunk_tokens, streams, prompt.mean) + _attention_s(p, traffic) * chunk_tokens
    queue_s = wait_s(
        traffic.requests_per_s,
        prompt.mean / chunk_tokens * full_s,
        prompt.variance / prompt.mean**2,
        replicas,
        objectives.percentile,
    )
    # The attention of the tail prompt itself is that of its own length.
    own = min(float(chunk_tokens), max(found.chunk, prompt.tail))
    turns_s = max(1.0, prompt.tail / chunk_tokens) * (step_s + p.chunk_s(own, streams, prompt.mean))
    beside_s = _attention_s(p, traffic) * max(0.0, own - prompt.tail)
    ttft_s = p.overhead_s + queue_s + turns_s + beside_s + p.c_s_per_token2 * prompt.tail**2
    return Mixed(most, ttft_s, tpot_s)


def _attention_s(p: Profile, traffic: Traffic) -> float:
    """Return the seconds of the attention of one prompt token.

    A chunk attends to the whole prompt before it. Per token this takes c * n on average over the
    prompts, weighted by length.
    """
    return p.c_s_per_token2 * traffic.prompt.second_moment / traffic.prompt.mean


def _steady(profile: Profile, traffic: Traffic, chunk_tokens: int) -> _Steady | None:
    """Return the steady state of a replica at its share of the traffic, or None if there is none.

    If every step can take a mean prompt or a whole chunk, some steps have one and others none.
    Otherwise, every step has as many prompt tokens as arrive during it, which must not be more than
    a chunk holds. Both are linear in the duration of a step.

    The step of some profiles is a curve. Each iteration uses a line through it at the result of the
    previous one. The tangents of a concave curve, from where all weights are read, decrease to the
    root (Newton's method); the secants of a convex one, from no sequences, increase to it.
    """
    arriving, made = traffic.prompt_tokens_per_s, traffic.output_tokens_per_s
    alone = min(float(chunk_tokens), traffic.prompt.mean)
    sequences, found = profile.first_guess, None
    for _ in range(_TURNS):
        p = profile.linear_at(sequences)
        free = 1 - made * (p.e_s_per_sequence + p.f_s_per_token * traffic.held_tokens)
        free -= arriving * _attention_s(p, traffic)
        idle = free - arriving / alone * p.chunk_s(alone, sequences, traffic.prompt.mean)
        found = _Steady(p.d_s / idle, alone) if idle > _LEAST_IDLE else None
        if found is None or arriving * found.mean_s > alone:
            mean_s = _full_s(p, traffic, free, sequences)
            if mean_s is None or arriving * mean_s > chunk_tokens:
                return None
            found = _Steady(mean_s, max(alone, arriving * mean_s))
        if p is profile or abs(made * found.mean_s - sequences) <= 1e-6 * sequences:
            break
        sequences = made * found.mean_s
    return found


def _full_s(p: Profile, traffic: Traffic, free: float, sequences: float) -> float | None:
    """Return the mean duration of a step in seconds if each has the prompt tokens that arrive.

    `free` is the share of the time that streams and attention leave. The duration is the largest of
    the solutions of linear equations: the chunk is computed while the weights are read or takes
    longer, and GPUs that compute their own prompts wait for each other or do not.
    """
    arriving, each = traffic.prompt_tokens_per_s, traffic.prompt.mean
    ranks, own_s = p.of_one_rank(each)
    found = []
    computing = arriving * p.b_s_per_token + traffic.output_tokens_per_s * p.beside_chunk_s(sequences)
    for chunk_s, slope in ((p.unread_s(sequences), 0.0), (p.a_s - p.reading_s(sequences), computing)):
        for waiting_s, waiting_slope in ((0.0, 0.0), (ranks * each * own_s, -own_s)):
            left = free - slope - arriving * waiting_slope
            if left <= _LEAST_IDLE:
                return None
            found.append((p.d_s + chunk_s + waiting_s) / left)
    return max(found)


def mean_load(
    traffic: Traffic, objectives: LatencyObjectives, profile: Profile, chunk_tokens: int, replicas: int
) -> float:
    """Return the number of replicas, at most `replicas`, that the mean load needs.

    It is what would do if requests came one after the other in equal intervals: their steps meet
    the TPOT, and their streams fit.
    """
    room = min(sequences_held(traffic, profile), profile.max_running)
    low, high = 0.0, float(replicas)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _steady(profile, traffic.at(traffic.requests_per_s / middle), chunk_tokens)
        streams = math.inf if found is None else traffic.output_tokens_per_s / middle * found.mean_s
        if found is not None and found.mean_s <= objectives.tpot_s and streams <= room:
            high = middle
        else:
            low = middle
    return high


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
                mean_load(traffic, objectives, profile, chunk_tokens, n) / n,
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
