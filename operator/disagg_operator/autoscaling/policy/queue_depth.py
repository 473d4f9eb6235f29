"""PURE: The policy `queue`: how many replicas a pool should have for the requests that it holds.

It is proportional:

    demand  = requests waiting for or running in the pool, averaged over `smoothing_s`
    wanted  = ceil(demand / target), clipped to [min, max]

- Within `tolerance` of `replicas * target` nothing changes.
- Scaling up happens at once, or after `up_window_s` of agreement (to the smallest recommendation of
  that window). Pods that are still starting count as `replicas`, so a deficit that they will cover
  does not ask for more.
- Scaling down goes to the largest recommendation of the last `down_window_s`, and happens only if
  that whole window was observed. A restart of the operator or a gap in the data restarts the
  window.
- A ready pod that did not answer counts 0 for scaling up and `target` for scaling down. A router
  that did not answer forbids scaling down. If nothing answered, the replicas are held. Absent never
  means zero.
- `min` and `max` are set by the user and hold even without data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from disagg_operator.autoscaling.policy.decision import (
    ABOVE_MAXIMUM,
    AT_LIMIT,
    AT_TARGET,
    BELOW_MINIMUM,
    METRICS_UNAVAILABLE,
    SCALE_DOWN,
    SCALE_UP,
    STABILIZING,
    WITHIN_TOLERANCE,
    Decision,
    PoolRules,
    at_bound,
)

# A longer time without samples is a gap: samples from before it cannot justify scaling down.
MAX_GAP_S = 30.0
_MOST_REQUESTS = 1e12  # a larger value is not a valid measurement
_EPSILON = 1e-9  # so that ceil(3.0000000001) is 3: rounding errors of a mean must not cost a replica


@dataclass(frozen=True, slots=True)
class QueueSample:
    """One look at a pool at the monotonic time `at`.

    `requests` is the sum over the pods that answered, or None if none did. A value that cannot be a
    number of requests is treated as None.
    """

    at: float
    requests: float | None
    silent_pods: int = 0  # ready pods that did not answer
    router_silent: bool = False


@dataclass(frozen=True, slots=True)
class QueueMemory:
    """The state of one pool between steps. The empty state is always a safe start."""

    samples: tuple[QueueSample, ...] = ()
    wanted: tuple[tuple[float, int], ...] = ()  # (time, recommendation), oldest first
    since: float | None = None  # start of the present data without a gap


SIGNAL = "QueueDepth"


def step(policy: PoolRules, sample: QueueSample, replicas: int, state: QueueMemory) -> tuple[Decision, QueueMemory]:
    """Process one sample, and return the decision and the new state.

    `replicas` is the number that the pool is set to now, including pods that are still starting.
    """
    if sample.requests is not None and not 0 <= sample.requests < _MOST_REQUESTS:  # NaN fails too
        sample = replace(sample, requests=None)
    state = _remember(policy, sample, state)
    demand = _mean(state.samples)
    value = None if demand is None else demand / max(replicas, 1)

    def decide(to: int, reason: str) -> Decision:
        limit = at_bound(to, policy.min_replicas, policy.max_replicas)
        return Decision(replicas, to, reason, SIGNAL, value, policy.target, limit=limit)

    if demand is None or sample.requests is None:
        to = _clip(replicas, policy)
        return decide(to, METRICS_UNAVAILABLE if to == replicas else _limit_reason(replicas, policy)), state

    silent = max(s.silent_pods for s in state.samples)
    router_silent = any(s.router_silent for s in state.samples)
    low = _clip(_recommend(demand, replicas, policy), policy)
    # For scaling down every silent pod counts as fully loaded.
    high = _clip(_recommend(demand + silent * policy.target, replicas, policy), policy)
    wanted = low if low > replicas else max(low, min(high, replicas))
    state = replace(state, wanted=(*state.wanted, (sample.at, wanted)))

    if replicas != _clip(replicas, policy):
        return decide(max(wanted, _clip(replicas, policy)), _limit_reason(replicas, policy)), state
    if wanted > replicas:
        return _up(decide, policy, sample.at, replicas, state), state
    if wanted < replicas:
        if router_silent:
            return decide(replicas, METRICS_UNAVAILABLE), state
        return _down(decide, policy, sample.at, replicas, state), state
    return decide(replicas, _hold_reason(demand, replicas, silent, policy)), state


def _up(
    decide: Callable[[int, str], Decision], policy: PoolRules, now: float, replicas: int, state: QueueMemory
) -> Decision:
    recent = [n for at, n in state.wanted if at >= now - policy.up_window_s]
    if policy.up_window_s > 0 and not _covers(state, now, policy.up_window_s):
        recent.append(replicas)
    to = min(recent)
    return decide(to, SCALE_UP) if to > replicas else decide(replicas, STABILIZING)


def _down(
    decide: Callable[[int, str], Decision], policy: PoolRules, now: float, replicas: int, state: QueueMemory
) -> Decision:
    recent = [n for at, n in state.wanted if at >= now - policy.down_window_s]
    if not _covers(state, now, policy.down_window_s):
        recent.append(replicas)
    to = max(recent)
    return decide(to, SCALE_DOWN) if to < replicas else decide(replicas, STABILIZING)


def _recommend(demand: float, replicas: int, policy: PoolRules) -> int:
    if replicas > 0 and abs(demand / (replicas * policy.target) - 1) <= policy.tolerance:
        return replicas
    return math.ceil(demand / policy.target - _EPSILON)


def _hold_reason(demand: float, replicas: int, silent: int, policy: PoolRules) -> str:
    if silent and _clip(_recommend(demand, replicas, policy), policy) < replicas:
        return METRICS_UNAVAILABLE
    wanted = _recommend(demand, replicas, policy)
    if wanted != replicas:
        return AT_LIMIT
    return WITHIN_TOLERANCE if math.ceil(demand / policy.target - _EPSILON) != replicas else AT_TARGET


def _remember(policy: PoolRules, sample: QueueSample, state: QueueMemory) -> QueueMemory:
    last = state.samples[-1].at if state.samples else None
    if last is not None and sample.at - last > MAX_GAP_S:
        state = QueueMemory()
    if sample.requests is None:
        return state
    samples = (*(s for s in state.samples if s.at > sample.at - policy.smoothing_s), sample)
    horizon = sample.at - max(policy.up_window_s, policy.down_window_s)
    wanted = tuple(w for w in state.wanted if w[0] >= horizon)
    return QueueMemory(samples, wanted, sample.at if state.since is None else state.since)


def _covers(state: QueueMemory, now: float, window_s: float) -> bool:
    return state.since is not None and state.since <= now - window_s


def _mean(samples: tuple[QueueSample, ...]) -> float | None:
    values = [s.requests for s in samples if s.requests is not None]
    return sum(values) / len(values) if values else None


def _clip(replicas: int, policy: PoolRules) -> int:
    return min(max(replicas, policy.min_replicas), policy.max_replicas)


def _limit_reason(replicas: int, policy: PoolRules) -> str:
    return BELOW_MINIMUM if replicas < policy.min_replicas else ABOVE_MAXIMUM
