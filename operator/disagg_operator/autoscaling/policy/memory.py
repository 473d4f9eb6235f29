"""PURE: what a user may set for the predictive policy, and what it remembers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disagg_operator.autoscaling.policy.forecast import Forecaster, Tuning
from disagg_operator.autoscaling.policy.learning import Learned
from disagg_operator.autoscaling.policy.miss_curve import MissCurve
from disagg_operator.performance.profile import Profile
from disagg_wire.roles import PREFILL


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bounds of one pool and the GPUs of one of its workers."""

    least: int = 1
    most: int = 40
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Peak:
    """A known peak: from `from_s` to `to_s` of each day (seconds, UTC) at least so many workers."""

    from_s: float
    to_s: float
    prefill: int = 0
    decode: int = 0

    def workers(self, role: str) -> int:
        """Return the least number of workers of one pool during the peak."""
        return self.prefill if role == PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user may set.

    `profile`: where learning a worker's speed begins. `budget`: the share of requests that may miss
    each of the two objectives for want of workers. `over_provisioning`: multiplies the expected
    work. `gpu_budget`: GPUs of both pools together. `ratio`: least and most decode workers per
    prefill worker. `cold_start_s`: until it has been measured. `role_flip_s`: time to move a worker
    between the pools; None: never. `price`: workers that one worker's work of missed requests is
    worth, to begin with. `learn`: correct the profile by what workers do.
    """

    profile: Profile
    tpot_s: float
    prefill: PoolLimits = PoolLimits()
    decode: PoolLimits = PoolLimits()
    budget: float = 0.0025
    over_provisioning: float = 1.0
    gpu_budget: int | None = None
    ratio: tuple[float, float] | None = None
    peaks: tuple[Peak, ...] = ()
    cold_start_s: float = 120.0
    role_flip_s: float | None = None
    price: float = 8.0
    tuning: Tuning = field(default_factory=Tuning)
    learn: bool = True

    def limits(self, role: str) -> PoolLimits:
        """Return the bounds of one pool."""
        return self.prefill if role == PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is remembered of one pool.

    `wanted`: (time, n) of the last cold starts; `missed` of `counted`: requests, faded; `cap`: so
    many workers could be placed when others could not, believed until `cap_until_s`; `pressure`:
    log of the price's correction by all that was missed.
    """

    demand: Forecaster = field(default_factory=Forecaster)
    curve: MissCurve = field(default_factory=lambda: MissCurve(0.2, 0.2))
    wanted: tuple[tuple[float, int], ...] = ()
    load: float = math.nan
    missed: float = 0.0
    counted: float = 0.0
    pressure: float = 0.0
    cap: int = 0
    cap_until_s: float = -math.inf


@dataclass(frozen=True, slots=True)
class State:
    """What a step remembers; the empty state is a safe start.

    `output_tokens`: mean of a request; `seen_s`: when metrics last came; `seen_with`: how many
    workers of each pool were wanted then.
    """

    prefill: PoolState = field(default_factory=PoolState)
    decode: PoolState = field(default_factory=lambda: PoolState(curve=MissCurve(-0.1, 0.08)))
    output_tokens: float = math.nan
    kv_per_sequence: float = math.nan
    began_s: float = math.nan
    began_with: tuple[int, int] = (0, 0)
    seen_s: float = math.nan
    seen_with: tuple[int, int] = (0, 0)
    learned: Learned = field(default_factory=Learned)
