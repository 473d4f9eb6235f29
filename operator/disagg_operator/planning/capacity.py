"""PURE: The sizes of the smallest prefill and decode pools that meet the objectives.

They are computed from a profile and the traffic.

Prefill is an M/G/c queue: the tail of the wait plus the time of the tail prompt alone must meet the
objective. For the work of u workers it has at least u + 0.6 sqrt(u) sqrt((1 + cs^2) / 2) workers.

A decode step has as many sequences as the objective allows. The pool has room for the streams that
are in flight at the percentile; the standard deviation of their number is its square root. Besides,
each replica has one network interface, which the KV traffic of its pool may use up to 80 %.
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
    """A pool of equal replicas."""

    role: str
    """The role of the pool: `prefill`, `decode` or `both`."""
    gpu: Gpu
    profile: Profile
    replicas: int
    batch: int
    """The number of tokens of a prefill batch, or the maximum number of sequences of a step."""
    utilisation: float
    """The load as a share of the capacity, 0 to 1."""
    bound: str
    """The limit that determines the size of the pool."""

    @property
    def tensor(self) -> int:
        """The number of GPUs of a replica."""
        return self.profile.gpus

    @property
    def gpus(self) -> int:
        """The number of GPUs of the pool."""
        return self.replicas * self.tensor

    @property
    def mean_replicas(self) -> int:
        """The number of replicas that the mean load needs; the others are head-room."""
        return min(self.replicas, max(1, math.ceil(self.utilisation * self.replicas - 1e-6)))


@dataclass(frozen=True, slots=True)
class Kv:
    """The KV cache of a model and the network over which it is moved from prefill to decode."""

    model: ModelShape
    network: Network

    def bytes_of(self, tokens: float) -> float:
        """Return the size of the cache of a sequence."""
        return self.model.kv_bytes(tokens)

    def alone_s(self, tokens: float) -> float:
        """Return the time in seconds to move the whole cache of a prompt at once."""
        return self.network.transfer_s(self.bytes_of(tokens))

    def exposed_s(self, tokens: float, prefill_s: float) -> float:
        """Return the seconds of a transfer that the computation of later layers does not hide.

        A layer is sent as soon as it is computed. After prefill the last layer remains to be sent,
        or everything that the network could not move in time.
        """
        moving_s = self.alone_s(tokens) - self.network.base_latency_s
        hidden_s = prefill_s * (1 - 1 / self.model.layers)
        return self.network.base_latency_s + max(moving_s / self.model.layers, moving_s - hidden_s)

    def bytes_per_s(self, traffic: Traffic) -> float:
        """Return the KV in bytes per second that the prefill pool sends to the decode pool."""
        return traffic.requests_per_s * self.bytes_of(traffic.prompt.mean)

    def interfaces(self, traffic: Traffic) -> int:
        """Return the number of replicas, with one network interface each, that can move the KV."""
        return max(1, math.ceil(self.bytes_per_s(traffic) / (self.network.bytes_per_s * _LINK_USE) - 1e-9))


@dataclass(frozen=True, slots=True)
class Infeasible:
    """The reason that no available deployment meets the objectives."""

    limit: str
    """The objective or resource that is not met: `ttft`, `tpot` or `memory`."""
    reason: str
    """The explanation in words."""


@dataclass(frozen=True, slots=True)
class Sized:
    """A pool with its latency in seconds at the percentile."""

    pool: PoolPlan
    latency_s: float


def prefill_batch_tokens(traffic: Traffic, profile: Profile) -> int:
    """Return the number of tokens of a prefill batch, a power of two.

    From this size the fixed part of a batch takes less than a tenth of its time, and its weights
    are read while it is computed. It is not less than a mean prompt.
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
    """Return the smallest prefill pool on one kind of replica.

    Each prompt is planned as a batch of its own; batching can only improve on that. However, if
    such a batch is too short to hide reading the weights, prompts under load share the reading, and
    each waits for the computation of the others.
    """
    mean = traffic.prompt.mean
    shared_s = profile.isolated_s(mean) - profile.prefill_s(mean, mean * mean)
    alone_s = profile.overhead_s + profile.batch_wait_s + profile.isolated_s(traffic.prompt.tail) + shared_s
    where = f"{profile.gpus} x {gpu.name}"
    if alone_s > objectives.ttft_s:
        return Infeasible(
            "ttft",
            f"a prompt of {traffic.prompt.tail:.0f} tokens takes {alone_s:.2f} s alone on {where}, "
            f"{objectives.ttft_s:g} s is asked",
        )
    p = profile
    service_s = p.a_s + p.b_s_per_token * traffic.prompt.mean + p.c_s_per_token2 * traffic.prompt.second_moment
    # The slope of the service time at the mean, which is the additional cost of a longer prompt.
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
    """Return the maximum number of sequences of a decode step, and the limit that determines it.

    The limits are the objective, the cache and the maximum that the engine runs.
    """
    by_time = profile.sequences_within(tpot_s * _TPOT_MARGIN, traffic.held_tokens)
    by_room = sequences_held(traffic, profile)
    return min((by_time, "tpot"), (by_room, "cache"), (float(profile.max_running), "batch"))


def sequences_held(traffic: Traffic, profile: Profile) -> float:
    """Return the number of mean requests that the cache holds; less than 1 if it can't hold one."""
    held = traffic.prompt.mean + traffic.output.mean
    return profile.kv_tokens / held if held <= profile.request_tokens else profile.request_tokens / held


def decode_pool(
    traffic: Traffic, objectives: LatencyObjectives, gpu: Gpu, profile: Profile, kv: Kv, exposed_s: float
) -> Sized | Infeasible:
    """Return the smallest decode pool on one kind of replica.

    `exposed_s` is the time by which the transfer delays the second token, which is part of TPOT.
    """
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
                f"a request of {held:.0f} tokens does not fit in the cache of {profile.request_tokens:.0f} tokens "
                f"of {where}",
            )
        one_s = serving.step_s(1, traffic.held_tokens)
        late = f" and {1e3 * late_s:.1f} ms for its KV over {kv.network.name}" if late_s > 0.05 * one_s else ""
        return Infeasible(
            "tpot",
            f"one sequence takes {1e3 * one_s:.1f} ms a token on {where}{late}, "
            f"{1e3 * objectives.tpot_s:g} ms is asked",
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
    """Return whether a request with prompt and answer of tail length fits into the cache."""
    return traffic.prompt.tail + traffic.output.tail <= pool.profile.request_tokens


def resized(pool: PoolPlan, replicas: int) -> PoolPlan:
    """Return the pool with another number of replicas, which a simulation determined."""
    return replace(pool, replicas=replicas, utilisation=pool.utilisation * pool.replicas / replicas, bound="simulation")
