"""PURE: The input of an autoscaling policy, which is a deployment at one moment, and its output.

Counts are of the last `interval_s`. NaN means that a value is unknown (no pod answered); it never
means zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disagg_wire.roles import PREFILL

UNKNOWN = math.nan
YOUNG_S = 60.0  # a younger worker still fills its caches and says little about its speed


@dataclass(frozen=True, slots=True)
class Pods:
    """The workers of one pool."""

    replicas: int
    """The number of workers that the pool is set to."""
    ready: int
    """The number of workers that are ready."""
    starting_ages_s: tuple[float, ...] = ()
    """The age in seconds of each worker that is not ready yet."""
    draining: int = 0
    """The number of workers that are being deleted."""
    cold_start_s: float = UNKNOWN
    """Mean seconds from creation to ready of the most recent workers; NaN before the first one."""
    unplaced_s: tuple[float, ...] = ()
    """The age in seconds of each worker for which the scheduler finds no node."""


@dataclass(frozen=True, slots=True)
class PrefillSignals:
    """The requests that arrive and the work of the prefill pool.

    Tokens are uncached prompt tokens. The fields `batches`, `batch_tokens`, `batch_tokens_squared`
    and `batch_s` describe the same workers, namely those that have been ready for `YOUNG_S` or
    longer. A worker's speed is learned from them.
    """

    pods: Pods
    """The workers of the pool."""
    arrivals: float = UNKNOWN
    """Requests that arrived in the interval."""
    prompt_tokens: float = UNKNOWN
    """Prompt tokens of these requests that are to be computed by the pool."""
    prompt_tokens_squared: float = UNKNOWN
    """Sum of the squares of these prompt tokens of each of these requests."""
    waiting_requests: float = UNKNOWN
    """Requests that wait for prefill now."""
    waiting_tokens: float = UNKNOWN
    """Prompt tokens of the requests that wait now."""
    running_requests: float = UNKNOWN
    """Requests that are being prefilled now."""
    busy_s: float = UNKNOWN
    """Seconds of computing in the interval, summed over the workers."""
    ttft_total: float = UNKNOWN
    """Requests of the interval with a known time to first token."""
    ttft_ok: float = UNKNOWN
    """Requests of the interval whose first token was within its objective."""
    batches: float = UNKNOWN
    """Batches computed in the interval."""
    batch_tokens: float = UNKNOWN
    """Tokens in these batches."""
    batch_tokens_squared: float = UNKNOWN
    """Sum of the squares of the tokens of each prompt in these batches."""
    batch_s: float = UNKNOWN
    """Seconds that these batches took."""
    batch_share: float = UNKNOWN
    """The share of a full batch that the workers may compute at once, from 0 to 1.

    It is below 1 while the workers wait for room in the decode pool.
    """
    to_decode: float = 0.0
    """The part of the arrivals whose prompts decode workers prefill by choice."""


@dataclass(frozen=True, slots=True)
class DecodeSignals:
    """The work of the decode pool.

    The fields `steps`, `step_sequences`, `step_kv_tokens` and `step_s` describe the same workers,
    as do the fields of batches in `PrefillSignals`.
    """

    pods: Pods
    """The workers of the pool."""
    waiting_requests: float = UNKNOWN
    """Requests that are prefilled or queued, and wait for decode capacity now."""
    running_requests: float = UNKNOWN
    """Requests that are being decoded now."""
    kv_tokens: float = UNKNOWN
    """Tokens that all workers hold in their KV caches now."""
    kv_capacity_tokens: float = UNKNOWN
    """Tokens that the KV cache of one worker can hold."""
    generated_tokens: float = UNKNOWN
    """Tokens generated in the interval."""
    completions: float = UNKNOWN
    """Requests that ended in the interval."""
    completed_output_tokens: float = UNKNOWN
    """Output tokens of the requests that ended in the interval."""
    completed_context_tokens: float = UNKNOWN
    """Context tokens of the requests that ended in the interval."""
    tpot_total: float = UNKNOWN
    """Requests of the interval with a known time per output token."""
    tpot_ok: float = UNKNOWN
    """Requests of the interval whose time per output token was within its objective."""
    steps: float = UNKNOWN
    """Decode steps made in the interval."""
    step_sequences: float = UNKNOWN
    """Sequences in these steps, summed over the steps."""
    step_kv_tokens: float = UNKNOWN
    """KV tokens in these steps, summed over the steps."""
    step_s: float = UNKNOWN
    """Seconds that these steps took."""
    rest_s: float = 0.0
    """Seconds in which all workers computed the rest of prompts whose start they had."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A deployment at one moment."""

    now_s: float
    """Seconds on any clock that only goes forward and stays the same for the life of a policy.

    For the daily shape to be learned, it must follow the time of day (UTC epoch).
    """
    interval_s: float
    """Seconds since the previous observation."""
    prefill: PrefillSignals
    """The prefill pool."""
    decode: DecodeSignals
    """The decode pool."""

    @property
    def blind(self) -> bool:
        """Whether the number of arrivals is unknown."""
        return math.isnan(self.prefill.arrivals)

    def pods(self, role: str) -> Pods:
        """Return the pods of one pool."""
        return (self.prefill if role == PREFILL else self.decode).pods


@dataclass(frozen=True, slots=True)
class Targets:
    """The number of workers that each pool should have."""

    prefill: int
    """Workers of the prefill pool."""
    decode: int
    """Workers of the decode pool."""
    reason: str = ""
    """The reason in a sentence for each pool."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The numbers that the answer is based on, by name."""
    flip: int = 0
    """Workers that should flip from prefill to decode, or minus those from decode to prefill."""
    unmet: dict[str, str] = field(default_factory=dict)
    """By pool, why its objective cannot be met, and what can be; empty if both can."""
    limits: dict[str, str] = field(default_factory=dict)
    """By pool, the limit at which it stands, as a word of `decision`; without those at none."""


@dataclass(frozen=True, slots=True)
class Folded:
    """An observation, and the pools about which some but not all signals are known (`partial`)."""

    observation: Observation
    partial: frozenset[str]
