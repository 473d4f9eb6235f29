"""PURE: The settings of the predictive policy, and its state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disagg_operator.autoscaling.policy.forecast import DAY_S, Forecaster, Tuning
from disagg_operator.autoscaling.policy.learning import Learned
from disagg_operator.autoscaling.policy.miss_curve import MissCurve
from disagg_operator.performance.profile import Profile
from disagg_wire.roles import PREFILL


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The bounds of one pool (`least` and `most` workers), and the GPUs of one of its workers."""

    least: int = 1
    most: int = 40
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Peak:
    """A known peak: the least number of workers from `from_s` to `to_s` of each day.

    Times are seconds of the day in UTC.
    """

    from_s: float
    to_s: float
    prefill: int = 0
    decode: int = 0

    def workers(self, role: str) -> int:
        """Return the least number of workers of one pool during the peak."""
        return self.prefill if role == PREFILL else self.decode

    def is_near(self, now_s: float, horizon_s: float) -> bool:
        """Return whether it is active at some time from now until `horizon_s` later."""
        begin, length = now_s % DAY_S, (self.to_s - self.from_s) % DAY_S
        return (begin - self.from_s) % DAY_S < length or (self.from_s - begin) % DAY_S <= horizon_s


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that a user may choose."""

    profile: Profile
    """The speed of a worker, from which learning starts."""
    tpot_s: float
    """The objective for the time per output token, in seconds."""
    prefill: PoolLimits = PoolLimits()
    """The bounds of the prefill pool."""
    decode: PoolLimits = PoolLimits()
    """The bounds of the decode pool."""
    budget: float = 0.0025
    """The share of requests that may miss each of the two objectives for lack of workers."""
    over_provisioning: float = 1.0
    """The factor by which the expected work is multiplied."""
    gpu_budget: int | None = None
    """The most GPUs of both pools together; None: no limit."""
    ratio: tuple[float, float] | None = None
    """The fewest and the most decode workers per prefill worker; None: no limits."""
    peaks: tuple[Peak, ...] = ()
    """The known peaks."""
    cold_start_s: float = 120.0
    """Seconds from the creation of a worker to its readiness, until they have been measured."""
    role_flip_s: float | None = None
    """Seconds that a role flip takes; None: roles are never flipped."""
    price: float = 48.0
    """The initial cost of missed requests that amount to the work of one worker, in workers."""
    tuning: Tuning = field(default_factory=Tuning)
    """The time constants of the forecasts."""
    learn: bool = True
    """Whether to correct the profile by measurements."""

    def limits(self, role: str) -> PoolLimits:
        """Return the bounds of one pool."""
        return self.prefill if role == PREFILL else self.decode


@dataclass(frozen=True, slots=True)
class PoolState:
    """The state of one pool."""

    demand: Forecaster = field(default_factory=Forecaster)
    """The forecasts of the pool's work, in workers."""
    curve: MissCurve = field(default_factory=lambda: MissCurve(0.2, 0.2))
    """The share of requests that miss their objective, by utilisation."""
    wanted: tuple[tuple[float, int], ...] = ()
    """(time, workers) wanted by the steps of the last cold starts."""
    load: float = math.nan
    """The demand averaged over the life of a request, in workers; NaN before the first step."""
    missed: float = 0.0
    """Requests that missed their objective; the number fades."""
    counted: float = 0.0
    """Requests that were measured against their objective; the number fades."""


@dataclass(frozen=True, slots=True)
class State:
    """The state of the policy between steps; the empty state is a safe start."""

    prefill: PoolState = field(default_factory=PoolState)
    """The state of the prefill pool."""
    decode: PoolState = field(default_factory=lambda: PoolState(curve=MissCurve(-0.1, 0.08)))
    """The state of the decode pool."""
    arrivals: Forecaster = field(default_factory=Forecaster)
    """The requests that arrive per second."""
    output_tokens: float = math.nan
    """Mean output tokens of a request; NaN until known."""
    kv_per_sequence: float = math.nan
    """Mean KV tokens of a running sequence; NaN until known."""
    began_s: float = math.nan
    """The time of the first step; NaN before it."""
    began_with: tuple[int, int] = (0, 0)
    """The workers that each pool (prefill, decode) was set to at the first step."""
    seen_s: float = math.nan
    """The time at which metrics were last available; NaN before that."""
    seen_with: tuple[int, int] = (0, 0)
    """The workers of each pool (prefill, decode) that were wanted at that time."""
    full_until_s: float = -math.inf
    """The time until which pools grow by one worker at a time, since others lacked a node."""
    learned: Learned = field(default_factory=Learned)
    """The measurements of the workers' speed."""
