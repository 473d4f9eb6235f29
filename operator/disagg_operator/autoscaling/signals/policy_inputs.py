"""PURE: One look at the pods as the input of the policies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling.policy.observation import Folded
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.signals.fold import Look, Memory, fold
from disagg_operator.autoscaling.signals.pool_reading import reading, view
from disagg_operator.autoscaling.signals.pool_sums import Answers
from disagg_wire.roles import DECODE, PREFILL

# Prometheus scrapes pods one after the other. A step waits until all have been scraped, but no
# longer than this.
_ALL_SCRAPED_S = 45.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The input of the policies from one look."""

    folded: Folded
    """The observation for the predictive policy."""
    samples: Mapping[str, QueueSample]
    """The samples for the policy `queue`, by pool."""
    counters: Memory
    """The counters with which those of the next look are compared."""
    fresh: bool
    """Whether every router has been scraped since the last step."""
    first: bool
    """Whether there was no earlier look, so that the increases of counters are unknown."""


def observe(look: Look, counters: Memory, *, polled: bool) -> Seen:
    """Return the input of the policies from one look.

    `polled` means that it was read from a Prometheus, which scrapes at its own times.
    """
    fresh = not polled or advanced(look.routers, counters, look.now_s)
    # Without a new scrape the increases of the counters are unknown.
    folded, after = fold(look, counters if fresh else Memory())
    return Seen(
        folded=folded,
        samples={PREFILL: _sample(PREFILL, look.prefill, look), DECODE: _sample(DECODE, look.decode, look)},
        counters=after if fresh else counters,
        fresh=fresh,
        first=math.isnan(counters.at_s) and any(sample is not None for sample in look.routers.values()),
    )


def _sample(pool: str, workers: Answers, look: Look) -> QueueSample:
    found = view(workers, reading(pool, workers, look.routers))
    return QueueSample(look.now_s, found.requests, found.silent_pods, found.router_silent)


def advanced(answers: Answers, counters: Memory, now_s: float) -> bool:
    """Return whether every pod that answers has been scraped since the last step.

    Also true if the last step was long ago.
    """
    if not now_s - counters.at_s < _ALL_SCRAPED_S:
        return True
    before = counters.samples
    heard = [(pod, sample) for pod, sample in answers.items() if sample is not None]
    return all(pod not in before or sample.at_s > before[pod].at_s for pod, sample in heard)
