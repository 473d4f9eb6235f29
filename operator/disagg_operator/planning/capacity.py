"""PURE: how many replicas of what serve the traffic within the objectives, apart or in one pool.

Waiting: an M/G/c pool is staffed with u + 0.6 sqrt(u) sqrt((1 + cs^2) / 2) servers (square-root staffing), and the tail of the wait is
taken as exponential with the mean of Sakasegawa's approximation (H. Sakasegawa, "An approximation formula Lq = a b^rho / (1 - rho)", 1977).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disagg_operator.planning.hardware import Gpu, Network
from disagg_operator.planning.model_shape import ModelShape
from disagg_operator.planning.performance import Efficiency, Profile, estimate

_TPOT_MARGIN = 0.97
_STAFFING = 0.6
_MOST_SEQUENCES = 512
_MOST_REPLICAS = 100_000
_CHUNKS_TOKENS = (128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests a second and their lengths. Second moments carry the tail: planning on mean prompts alone forgets it."""

    requests_per_s: float
    prompt_mean_tokens: float
    prompt_second_moment: float
    prompt_p99_tokens: float
    output_mean_tokens: float

    def scaled(self, requests_per_s: float) -> Traffic:
        return Traffic(requests_per_s, self.prompt_mean_tokens, self.prompt_second_moment, self.prompt_p99_tokens, self.output_mean_tokens)


@dataclass(frozen=True, slots=True)
class Objectives:
    """99th percentiles."""

    ttft_p99_s: float
    tpot_p99_s: float


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool of equal replicas. `batch`: prompts' tokens in a prefill batch, or sequences in a decode batch."""

    role: str
    gpu: Gpu
    tensor: int
    replicas: int
    batch: int
    utilisation: float
    profile: Profile

    @property
    def gpus(self) -> int:
        return self.replicas * self.tensor


@dataclass(frozen=True, slots=True)
class Deployment:
    """One or two pools with what a user sees of them. `cost_per_hour` in the currency of the prices."""

    pools: tuple[PoolPlan, ...]
    ttft_p99_s: float
    tpot_p99_s: float
    transfer_p99_s: float
    cost_per_hour: float

    @property
    def gpus(self) -> int:
        return sum(p.gpus for p in self.pools)


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Why nothing in reach meets the objectives; names the objective."""

    reason: str


def wait_p99_s(arrivals_per_s: float, service_s: float, service_cv2: float, servers: int) -> float:
    """99th percentile of the wait in a pool of `servers`; infinite when overloaded."""
    rho = arrivals_per_s * service_s / servers
    if rho >= 1:
        return math.inf
    mean_s = (1 + service_cv2) / 2 * rho ** (math.sqrt(2 * (servers + 1)) - 1) / (servers * (1 - rho)) * service_s
    busy: float = rho ** (math.sqrt(2 * (servers + 1)) - 1)
    return 0.0 if busy <= 0.01 else mean_s / busy * math.log(busy / 0.01)


def prefill_pool(traffic: Traffic, ttft_p99_s: float, gpu: Gpu, profile: Profile) -> tuple[PoolPlan, float] | Infeasible:
    """The smallest prefill pool and its p99 TTFT."""
    alone_s = profile.prefill_s(traffic.prompt_p99_tokens)
    if alone_s > ttft_p99_s:
        return Infeasible(
            f"ttft: a prompt of {traffic.prompt_p99_tokens:.0f} tokens takes {alone_s:.2f} s alone on {profile.gpus} x {gpu.name}, "
            f"{ttft_p99_s:g} s is asked"
        )
    service_s = profile.a_s + profile.b_s * traffic.prompt_mean_tokens + profile.c_s * traffic.prompt_second_moment
    variance = max(0.0, traffic.prompt_second_moment - traffic.prompt_mean_tokens**2)
    cv2 = profile.b_s**2 * variance / service_s**2
    load = traffic.requests_per_s * service_s
    servers = max(1, math.ceil(load + _STAFFING * math.sqrt(load) * math.sqrt((1 + cv2) / 2) - 1e-9))
    while servers < _MOST_REPLICAS:
        found_s = alone_s + wait_p99_s(traffic.requests_per_s, service_s, cv2, servers)
        if found_s <= ttft_p99_s:
            batch = max(1, round((profile.b_s and profile.a_s / profile.b_s) * 4))
            return PoolPlan("prefill", gpu, profile.gpus, servers, batch, load / servers, profile), found_s
        servers += max(1, servers // 50)
    return Infeasible("ttft: more than 100,000 prefill replicas would be needed")


def decode_batch(traffic: Traffic, tpot_p99_s: float, profile: Profile) -> float:
    """The most sequences in one step inside the objective and the cache; below 1: infeasible."""
    held_tokens = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    by_time = (tpot_p99_s * _TPOT_MARGIN - profile.d_s) / (profile.e_s + profile.f_s * held_tokens)
    by_room = profile.kv_tokens / (traffic.prompt_mean_tokens + traffic.output_mean_tokens)
    return min(by_time, by_room, _MOST_SEQUENCES)


def decode_pool(traffic: Traffic, tpot_p99_s: float, gpu: Gpu, profile: Profile) -> tuple[PoolPlan, float] | Infeasible:
    """The smallest decode pool and its p99 TPOT."""
    batch = decode_batch(traffic, tpot_p99_s, profile)
    if batch < 1:
        least_s = profile.step_s(1, traffic.prompt_mean_tokens)
        return Infeasible(
            f"tpot: one sequence takes {1e3 * least_s:.1f} ms a token on {profile.gpus} x {gpu.name}, {1e3 * tpot_p99_s:g} ms is asked"
        )
    held_tokens = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    step_s = profile.step_s(batch, batch * held_tokens)
    # Sequences in flight, spread at random over replicas: their standard deviation is the root of their mean.
    flying = traffic.requests_per_s * traffic.output_mean_tokens * step_s
    replicas = max(1, math.ceil((flying + 2.33 * math.sqrt(flying)) / batch - 1e-9))
    here = flying / replicas
    busy_s = profile.step_s(min(batch, here + 2.33 * math.sqrt(here)), min(batch, here + 2.33 * math.sqrt(here)) * held_tokens)
    return PoolPlan("decode", gpu, profile.gpus, replicas, int(batch), flying / (replicas * batch), profile), busy_s


@dataclass(frozen=True, slots=True)
class _Mixed:
    """What one replica of a monolithic pool does at its share of the traffic."""

    streams: float
    ttft_p99_s: float
    tpot_p99_s: float
    utilisation: float


def _mixed(traffic: Traffic, profile: Profile, chunk_tokens: int, replicas: int) -> _Mixed | None:
    """Chunked prefill between decode steps: a chunk holds every running stream for its time. None: overloaded.

    A stream meets a Poisson number of chunks in its life; its time per token is the step's, plus the 99th percentile of those.
    """
    held_tokens = traffic.prompt_mean_tokens + traffic.output_mean_tokens / 2
    chunk_s = profile.b_s * chunk_tokens + profile.c_s * chunk_tokens * traffic.prompt_second_moment / traffic.prompt_mean_tokens
    chunks_per_s = traffic.requests_per_s / replicas * math.ceil(traffic.prompt_mean_tokens / chunk_tokens)
    streams_per_step_s = traffic.requests_per_s / replicas * traffic.output_mean_tokens
    idle = 1 - chunks_per_s * chunk_s - streams_per_step_s * (profile.e_s + profile.f_s * held_tokens)
    if idle <= 0.02:
        return None
    mean_s = profile.d_s / idle  # solves mean = step(streams_per_step * mean) + chunks_per_s * chunk_s * mean
    streams = streams_per_step_s * mean_s
    most = streams + 2.33 * math.sqrt(streams)
    step_s = profile.step_s(max(1.0, most), max(1.0, most) * held_tokens)
    met = chunks_per_s * traffic.output_mean_tokens * mean_s
    tpot_s = step_s + (met + 2.33 * math.sqrt(met)) * chunk_s / traffic.output_mean_tokens
    variance = max(0.0, traffic.prompt_second_moment - traffic.prompt_mean_tokens**2)
    turn_s = step_s + chunk_s
    service_s = math.ceil(traffic.prompt_mean_tokens / chunk_tokens) * turn_s
    wait_s = wait_p99_s(traffic.requests_per_s, service_s, variance / traffic.prompt_mean_tokens**2, replicas)
    ttft_s = wait_s + math.ceil(traffic.prompt_p99_tokens / chunk_tokens) * turn_s
    return _Mixed(most, ttft_s, tpot_s, 1 - idle)


def monolithic(traffic: Traffic, objectives: Objectives, gpu: Gpu, profile: Profile) -> tuple[PoolPlan, float, float] | Infeasible:
    """One pool doing both: the chunk size that needs the fewest replicas. (plan, p99 TTFT, p99 TPOT)."""
    best: tuple[PoolPlan, float, float] | None = None
    for chunk_tokens in _CHUNKS_TOKENS:
        replicas, most = 1, best[0].replicas if best else _MOST_REPLICAS
        while replicas < most:
            found = _mixed(traffic, profile, chunk_tokens, replicas)
            held = traffic.prompt_mean_tokens + traffic.output_mean_tokens
            if found is not None and _meets(found, objectives, profile.kv_tokens / held):
                pool = PoolPlan("both", gpu, profile.gpus, replicas, math.ceil(found.streams), found.utilisation, profile)
                best = pool, found.ttft_p99_s, found.tpot_p99_s
                break
            replicas += max(1, replicas // 50)
    if best is not None:
        return best
    idle = _mixed(traffic.scaled(1e-6), profile, _CHUNKS_TOKENS[-1], 1)
    if idle is not None and idle.ttft_p99_s > objectives.ttft_p99_s:
        return Infeasible(
            f"ttft: {traffic.prompt_p99_tokens:.0f} tokens take {idle.ttft_p99_s:.2f} s even alone on {profile.gpus} x {gpu.name}, "
            f"{objectives.ttft_p99_s:g} s is asked"
        )
    return Infeasible(f"tpot: prefill beside decoding leaves no way to {1e3 * objectives.tpot_p99_s:g} ms on {profile.gpus} x {gpu.name}")


def _meets(found: _Mixed, objectives: Objectives, room: float) -> bool:
    return (
        found.ttft_p99_s <= objectives.ttft_p99_s
        and found.tpot_p99_s <= objectives.tpot_p99_s
        and found.streams <= min(room, _MOST_SEQUENCES)
    )


def profiles(model: ModelShape, gpu: Gpu, efficiency: Efficiency) -> list[Profile]:
    """Every tensor parallelism that the GPU and the model's KV heads allow."""
    found = []
    tensor = 1
    while tensor <= gpu.max_tensor and model.kv_heads % tensor == 0:
        if (profile := estimate(model, gpu, tensor, efficiency)) is not None:
            found.append(profile)
        tensor *= 2
    return found


def transfer_s(model: ModelShape, network: Network, tokens: float) -> float:
    """The KV cache of a prompt over the network, not overlapped with its computation."""
    return network.transfer_s(tokens * model.kv_bytes_per_token)
