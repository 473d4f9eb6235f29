"""PURE: One look at the pods, as the policies go by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling.policy.observation import Folded
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.signals.fold import Answers, Look, Memory, fold
from disagg_operator.autoscaling.signals.pool_reading import reading, view
from disagg_wire.roles import DECODE, PREFILL

# Prometheus scrapes pods one after the other: a step waits until all have been scraped, or for so long.
_ALL_SCRAPED_S = 45.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The observation of one look, and what of it is new."""

    folded: Folded
    """The observation that the predictive policy goes by."""
    samples: Mapping[str, QueueSample]
    """What the policy `queue` goes by, by pool."""
    counters: Memory
    """What the counters of the next look are compared with."""
    fresh: bool
    """Whether every router has been scraped since the last step."""
    first: bool
    """Whether no earlier look is known, so that counters say nothing yet."""


def observe(look: Look, counters: Memory, *, polled: bool) -> Seen:
    """Return what a look shows. `polled`: it was read from a Prometheus, which scrapes at its own times."""
    fresh = not polled or _advanced(look.routers, counters, look.now_s)
    # Nothing was scraped since: what was counted meanwhile is not known.
    folded, after = fold(look, counters if fresh else Memory())
    return Seen(
        folded=folded,
        samples={PREFILL: _sample(PREFILL, look.prefill, look), DECODE: _sample(DECODE, look.decode, look)},
        counters=after if fresh else counters,
        fresh=fresh,
        first=math.isnan(counters.at_s) and any(sample is not None for sample in look.routers.values()),
    )


def loads(look: Look) -> dict[str, float]:
    """Return the requests that each pod holds, for those that answered."""
    both = (reading(PREFILL, look.prefill, look.routers), reading(DECODE, look.decode, look.routers))
    return {pod: load for found in both for pod, load in found.by_pod.items()}


def _sample(pool: str, workers: Answers, look: Look) -> QueueSample:
    found = view(workers, reading(pool, workers, look.routers))
    return QueueSample(look.now_s, found.requests, found.silent_pods, found.router_silent)


def _advanced(routers: Answers, counters: Memory, now_s: float) -> bool:
    """Whether every router that answers has been scraped since the last step, or that step is long ago."""
    if not now_s - counters.at_s < _ALL_SCRAPED_S:
        return True
    before = counters.samples
    heard = [(pod, sample) for pod, sample in routers.items() if sample is not None]
    return all(pod not in before or sample.at_s > before[pod].at_s for pod, sample in heard)
