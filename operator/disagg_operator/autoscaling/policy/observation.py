"""PURE: what an autoscaling policy sees of a deployment at one moment, and what it answers.

Counts are of the last `interval_s`; a NaN means not known (nobody answered), never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from disagg_wire.roles import PREFILL

UNKNOWN = math.nan
YOUNG_S = 60.0  # a worker that new still fills its caches and says little of its speed


@dataclass(frozen=True, slots=True)
class Pods:
    """Workers of one pool.

    `replicas`: what it is set to; `starting_ages_s`: since when each that is not ready yet exists;
    `cold_start_s`: mean time from creation to ready, measured on the last ones (NaN: none yet).
    """

    replicas: int
    ready: int
    starting_ages_s: tuple[float, ...] = ()
    draining: int = 0
    cold_start_s: float = UNKNOWN


@dataclass(frozen=True, slots=True)
class PrefillSignals:
    """Arrivals and what they ask for; tokens are uncached prompt tokens.

    `busy_s`: seconds of computing, summed over the workers.

    `batch_share`: how much of a full batch the workers may compute at once, 0 to 1; under 1 where
    they wait for room in decode. The other `batch*`: the batches computed in the interval, what was
    in them (tokens, squares of each prompt's tokens) and how long they took: all four of the same
    workers, without those that became ready less than `YOUNG_S` ago. A worker's speed is learned
    from them.
    """

    pods: Pods
    arrivals: float = UNKNOWN
    prompt_tokens: float = UNKNOWN
    prompt_tokens_squared: float = UNKNOWN
    waiting_requests: float = UNKNOWN
    waiting_tokens: float = UNKNOWN
    running_requests: float = UNKNOWN
    busy_s: float = UNKNOWN
    ttft_total: float = UNKNOWN
    ttft_ok: float = UNKNOWN
    batches: float = UNKNOWN
    batch_tokens: float = UNKNOWN
    batch_tokens_squared: float = UNKNOWN
    batch_s: float = UNKNOWN
    batch_share: float = UNKNOWN


@dataclass(frozen=True, slots=True)
class DecodeSignals:
    """`waiting_requests`: prefilled or queued for want of decode capacity.

    `completed_*`: of the requests that ended in the interval.

    `step*`: the decode steps made in the interval, the sequences and the KV tokens in them, summed
    over the steps, and how long they took: of the same workers, as for prefill.
    `kv_capacity_tokens`: of one worker; `kv_tokens`: of all.
    """

    pods: Pods
    waiting_requests: float = UNKNOWN
    running_requests: float = UNKNOWN
    kv_tokens: float = UNKNOWN
    kv_capacity_tokens: float = UNKNOWN
    generated_tokens: float = UNKNOWN
    completions: float = UNKNOWN
    completed_output_tokens: float = UNKNOWN
    completed_context_tokens: float = UNKNOWN
    tpot_total: float = UNKNOWN
    tpot_ok: float = UNKNOWN
    steps: float = UNKNOWN
    step_sequences: float = UNKNOWN
    step_kv_tokens: float = UNKNOWN
    step_s: float = UNKNOWN


@dataclass(frozen=True, slots=True)
class Observation:
    """`now_s`: any clock that only goes forward, the same one over a policy's life; of the day for
    the daily shape (UTC epoch).
    """

    now_s: float
    interval_s: float
    prefill: PrefillSignals
    decode: DecodeSignals

    @property
    def blind(self) -> bool:
        """What arrives is not known."""
        return math.isnan(self.prefill.arrivals)

    def pods(self, role: str) -> Pods:
        """Return the pods of one pool."""
        return (self.prefill if role == PREFILL else self.decode).pods


@dataclass(frozen=True, slots=True)
class Targets:
    """How many workers each pool should have; `flip`: so many of the change shall move between the
    pools (> 0: prefill to decode).

    `*_ahead`: workers that may be needed in ten minutes, for who provisions nodes; 0: not known.
    """

    prefill: int
    decode: int
    reason: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    flip: int = 0
    prefill_ahead: int = 0
    decode_ahead: int = 0


@dataclass(frozen=True, slots=True)
class Folded:
    """`partial`: the pools of which something is not known, though not all."""

    observation: Observation
    partial: frozenset[str]
