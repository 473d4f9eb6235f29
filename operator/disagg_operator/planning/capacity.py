"""PURE: the smallest prefill pool and the smallest decode pool that keep an objective, from a
profile and the traffic.

Prefill is an M/G/c queue: the tail of the wait, and the tail prompt alone, must fit into the
objective. It is staffed with at least u + 0.6 sqrt(u) sqrt((1 + cs^2) / 2) workers for u workers'
worth of work.

Decode: so many sequences in one step as the objective allows, and room for the streams that are in
flight at the percentile, whose number has the standard deviation of its root. On top, each replica
has one network interface, which its pool's KV traffic may fill to 80 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_operator.performance.hardware import Gpu, Network
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.performance.profile import Profile
from disagg_operator.planning.queueing import MOST_REPLICAS, least, wait_s
from disagg_operator.planning.traffic import LatencyObjectives, Traffic

_TPOT_MARGIN = 0.97
_STAFFING = 0.6
_LINK_USE = 0.8


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """A pool of equal replicas.

    `batch`: tokens of a prefill batch, or most sequences of a step. `bound`: what sets its size.
    """

    role: str
    gpu: Gpu
    profile: Profile
    replicas: int
    batch: int
    utilisation: float
    bound: str

    @property
    def tensor(self) -> int:
        return self.profile.gpus

    @property
    def gpus(self) -> int:
        return self.replicas * self.tensor


@dataclass(frozen=True, slots=True)
class Kv:
    """The cache of one token, and the way that it takes; what of a transfer is not hidden behind
    the computation of later layers.
    """

    model: ModelShape
    network: Network

    def bytes_of(self, tokens: float) -> float:
        return self.model.kv_bytes(tokens)

    def alone_s(self, tokens: float) -> float:
        """The whole cache of a prompt at once."""
        return self.network.transfer_s(self.bytes_of(tokens))

    def exposed_s(self, tokens: float, prefill_s: float) -> float:
        """Layers go out as they are computed: what is left is the last one, or all that the link is
        behind.
        """
        moving_s = self.alone_s(tokens) - self.network.base_latency_s
        hidden_s = prefill_s * (1 - 1 / self.model.layers)
        return self.network.base_latency_s + max(moving_s / self.model.layers, moving_s - hidden_s)

    def interfaces(self, traffic: Traffic) -> int:
        """Replicas, with one network interface each, that can move the traffic's KV."""
        bits_per_s = 8 * traffic.requests_per_s * self.bytes_of(traffic.prompt.mean)
        return max(
            1, math.ceil(bits_per_s / (self.network.line_bits_per_s * self.network.efficiency * _LINK_USE) - 1e-9)
        )


@dataclass(frozen=True, slots=True)
class Infeasible:
    """Why nothing in reach meets the objectives.

    `limit`: the objective or resource that can't be met.
    """

    limit: str
    reason: str


@dataclass(frozen=True, slots=True)
class Sized:
    """A pool and the latency at the percentile that it gives."""

    pool: PoolPlan
    latency_s: float


def prefill_batch_tokens(traffic: Traffic, profile: Profile) -> int:
    """Tokens from which on the fixed part of a batch is under a tenth of its time and its weights
    are read while it is computed; at least a typical prompt, as a power of two.
    """
    wanted = max(
        traffic.prompt.mean,
        profile.full_tokens,
        9 * profile.a_s / profile.b_s_per_token if profile.b_s_per_token else 0.0,
    )
    return int(min(65_536, max(256, 2 ** math.ceil(math.log2(wanted)))))


def prefill_pool(
    traffic: Traffic, objectives: LatencyObjectives, gpu: Gpu, profile: Profile, kv: Kv
) -> Sized | Infeasible:
    """Each prompt is taken as a batch of its own, which batching only betters.

    But where that would be too short to be worth reading the weights, prompts under load share
    them, and one waits for the others'.
    """
    mean = traffic.prompt.mean
    shared_s = profile.isolated_s(mean) - profile.prefill_s(mean, mean * mean)
    alone_s = profile.overhead_s + profile.batch_wait_s + profile.isolated_s(traffic.prompt.tail) + shared_s
    where = f"{profile.gpus} x {gpu.name}"
    if alone_s > objectives.ttft_s:
        return Infeasible(
            "ttft",
            f"a prompt of {traffic.prompt.tail:.0f} tokens takes {alone_s:.2f} s alone on {where}, {objectives.ttft_s:g} s is asked",
        )
    p = profile
    service_s = p.a_s + p.b_s_per_token * traffic.prompt.mean + p.c_s_per_token2 * traffic.prompt.second_moment
    # The slope of the service time at the mean: what a longer prompt costs more.
    slope = p.b_s_per_token + 2 * p.c_s_per_token2 * traffic.prompt.mean
    cv2 = slope**2 * traffic.prompt.variance / service_s**2
    load = traffic.requests_per_s * service_s
    staffed = max(1, math.ceil(load + _STAFFING * math.sqrt(load) * math.sqrt((1 + cv2) / 2) - 1e-9))
    network = kv.interfaces(traffic)

    def ttft_s(servers: int) -> float:
        return alone_s + wait_s(traffic.requests_per_s, service_s, cv2, servers, objectives.percentile)

    found = least(lambda n: ttft_s(n) <= objectives.ttft_s, max(staffed, network))
    if found is None or found > MOST_REPLICAS:
        return Infeasible("ttft", f"more than {MOST_REPLICAS:,} prefill replicas of {where} would be needed")
    bound = "network" if found == network > staffed else "ttft" if found > staffed else "compute"
    pool = PoolPlan("prefill", gpu, profile, found, prefill_batch_tokens(traffic, profile), load / found, bound)
    return Sized(pool, ttft_s(found))


def decode_batch(traffic: Traffic, tpot_s: float, profile: Profile) -> tuple[float, str]:
    """The most sequences in one step inside the objective, the cache and what an engine runs, and
    which of them it is.
    """
    by_time = profile.sequences_within(tpot_s * _TPOT_MARGIN, traffic.held_tokens)
    by_room = sequences_held(traffic, profile)
    return min((by_time, "tpot"), (by_room, "cache"), (float(profile.max_running), "batch"))


def sequences_held(traffic: Traffic, profile: Profile) -> float:
    """How many usual requests the cache holds; less than one where it can't hold any."""
    held = traffic.prompt.mean + traffic.output.mean
    return profile.kv_tokens / held if held <= profile.request_tokens else profile.request_tokens / held


def decode_pool(
    traffic: Traffic, objectives: LatencyObjectives, gpu: Gpu, profile: Profile, kv: Kv, exposed_s: float
) -> Sized | Infeasible:
    """`exposed_s`: how much later the second token comes for the transfer; it counts in TPOT."""
    where = f"{profile.gpus} x {gpu.name}"
    late_s = (exposed_s + profile.handover_s) / max(1.0, traffic.output.mean - 1)
    serving = profile.serving(traffic.output.mean)
    fraction, bound = decode_batch(traffic, objectives.tpot_s - late_s, serving)
    batch = math.floor(fraction + 1e-9)
    if batch < 1:
        if bound == "cache":
            held = traffic.prompt.mean + traffic.output.mean
            return Infeasible(
                "memory",
                f"a request of {held:.0f} tokens does not fit in the cache of {profile.request_tokens:.0f} tokens of {where}",
            )
        one_s = serving.step_s(1, traffic.held_tokens)
        late = f" and {1e3 * late_s:.1f} ms for its KV over {kv.network.name}" if late_s > 0.05 * one_s else ""
        return Infeasible(
            "tpot",
            f"one sequence takes {1e3 * one_s:.1f} ms a token on {where}{late}, {1e3 * objectives.tpot_s:g} ms is asked",
        )
    step_s = serving.step_s(batch, batch * traffic.held_tokens)
    flying = traffic.output_tokens_per_s * step_s
    needed = max(1, math.ceil((flying + objectives.z * math.sqrt(flying)) / batch - 1e-9))
    network = kv.interfaces(traffic)
    replicas = max(needed, network)
    if replicas > MOST_REPLICAS:
        return Infeasible("tpot", f"more than {MOST_REPLICAS:,} decode replicas of {where} would be needed")
    here = flying / replicas
    most = min(float(batch), max(1.0, here + objectives.z * math.sqrt(here)))
    pool = PoolPlan(
        "decode",
        gpu,
        profile.around(batch),
        replicas,
        batch,
        flying / (replicas * batch),
        "network" if network > needed else bound,
    )
    return Sized(pool, serving.step_s(most, most * traffic.held_tokens) + late_s)


def with_tail_in_cache(pool: PoolPlan, traffic: Traffic) -> bool:
    """The longest usual request fits into the cache."""
    return traffic.prompt.tail + traffic.output.tail <= pool.profile.request_tokens


def resized(pool: PoolPlan, replicas: int) -> PoolPlan:
    """The same pool with another count, as a simulation found it."""
    return replace(pool, replicas=replicas, utilisation=pool.utilisation * pool.replicas / replicas, bound="simulation")
