"""PURE: around the predictive policy: what an operator must add to it before it may move pods.

A pool that the operator does not scale keeps its size. A pool of which something is not known is
not scaled down. A declared window damps scaling down. A short blindness says nothing, a longer one
is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy import predictive
from disagg_operator.autoscaling.policy.decision import (
    ABOVE_MAXIMUM,
    BELOW_MINIMUM,
    METRICS_UNAVAILABLE,
    STABILIZING,
    Decision,
    PoolRules,
)
from disagg_operator.autoscaling.policy.observation import Folded, Observation, Targets
from disagg_operator.autoscaling.policy.predictive import Settings, State
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.policy.queue_pools import QueueStart

SIGNAL = "Forecast"
FORECAST_UP = "ForecastAboveCapacity"
FORECAST_DOWN = "ForecastBelowCapacity"
ENOUGH = "Enough"
PARTIAL_METRICS = "PartialMetrics"
# One scrape that failed is no blindness.
BLIND_AFTER_S = 15.0


@dataclass(frozen=True, slots=True)
class Predicting:
    """What is remembered of a deployment.

    `wanted`: (time, workers) by pool, for a declared window.
    """

    state: State = field(default_factory=State)
    wanted: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    seen_s: float = math.nan


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one step of a policy, with all that is needed to make the step again."""

    observation: Observation
    """What the policy went by."""
    targets: Targets
    """What the policy answered."""
    decisions: Mapping[str, Decision]
    """What becomes of the answer, by pool that the operator scales."""
    settings: Settings
    """The predictive policy's settings at this step."""
    before: State
    """The predictive policy's state before this step."""
    queue: QueueStart | None = None
    """The rules and memories before this step, where the policy is `queue`."""
    samples: Mapping[str, QueueSample] = field(default_factory=dict)
    """What the policy `queue` went by, by pool."""


def step(
    settings: Settings,
    pools: Mapping[str, PoolRules],
    down_windows_s: Mapping[str, float],
    folded: Folded,
    memory: Predicting,
) -> tuple[Outcome | None, Predicting]:
    """Take one look into account; None: nothing is said, everything stays.

    `pools`: bounds of those that are scaled.
    """
    o = seen_whole(folded.observation)
    folded = replace(folded, observation=o)
    if o.blind and o.now_s - memory.seen_s < BLIND_AFTER_S:
        return None, memory
    settings = fixed(settings, pools, o)
    targets, state = predictive.step(settings, o, memory.state)
    decisions, wanted = {}, dict(memory.wanted)
    for name, bounds in pools.items():
        to = targets.prefill if name == "prefill" else targets.decode
        window_s = down_windows_s.get(name)
        to = min(max(to, bounds.min_replicas), bounds.max_replicas)
        current = o.pods(name).replicas
        if window_s is not None and not o.blind:
            wanted[name] = (*((at, n) for at, n in wanted.get(name, ()) if at > o.now_s - window_s), (o.now_s, to))
        decisions[name] = _decision(
            name, bounds, o, targets, to, current, _held(name, to, current, window_s, folded, memory, wanted)
        )
    seen_s = memory.seen_s if o.blind else o.now_s
    if math.isnan(seen_s):
        seen_s = -math.inf  # blind from the start: told once, at once
    return Outcome(o, targets, decisions, settings, memory.state), replace(
        memory, state=state, wanted=wanted, seen_s=seen_s
    )


def seen_whole(o: Observation) -> Observation:
    """A moment at which what comes in or what is generated is not known is a blind one: half a
    picture would be taken for no load.
    """
    needed = (o.prefill.arrivals, o.prefill.prompt_tokens, o.prefill.prompt_tokens_squared, o.decode.generated_tokens)
    if not any(map(math.isnan, needed)):
        return o
    return replace(o, prefill=replace(o.prefill, arrivals=math.nan))


def fixed(settings: Settings, pools: Mapping[str, PoolRules], o: Observation) -> Settings:
    """A pool that isn't scaled has the size that it has."""
    p, d = o.prefill.pods.replicas, o.decode.pods.replicas
    if "prefill" not in pools:
        settings = replace(settings, prefill=replace(settings.prefill, least=p, most=p))
    if "decode" not in pools:
        settings = replace(settings, decode=replace(settings.decode, least=d, most=d))
    return settings


def _held(
    name: str,
    to: int,
    current: int,
    window_s: float | None,
    folded: Folded,
    memory: Predicting,
    wanted: Mapping[str, tuple[tuple[float, int], ...]],
) -> tuple[int, str]:
    """(so many at least, why) when something forbids scaling down."""
    if to >= current or folded.observation.blind:
        return 0, ""
    if name in folded.partial:
        return current, PARTIAL_METRICS
    if window_s is None:
        return 0, ""
    recent = memory.wanted.get(name, ())
    covered = bool(recent) and recent[0][0] <= folded.observation.now_s - window_s
    highest = max(n for _, n in wanted[name])
    least = max(highest, max((n for _, n in recent), default=0)) if covered else current
    return min(least, current), STABILIZING


def _decision(
    name: str, bounds: PoolRules, o: Observation, targets: Targets, to: int, current: int, held: tuple[int, str]
) -> Decision:
    numbers = {
        key.removeprefix(f"{name}_"): float(f"{value:.4g}")
        for key, value in targets.numbers.items()
        if key.startswith(f"{name}_") and math.isfinite(value)
    }
    message = _words(targets.reason, name)
    least, why = held
    if to < least:
        to = least
        message = f"{message}; {'some pods did not answer' if why == PARTIAL_METRICS else 'scaling down waits for its window'}"
    if o.blind:
        reason = METRICS_UNAVAILABLE
    elif not bounds.min_replicas <= current <= bounds.max_replicas:
        reason = BELOW_MINIMUM if current < bounds.min_replicas else ABOVE_MAXIMUM
    else:
        reason = (
            why if why and to == current else FORECAST_UP if to > current else FORECAST_DOWN if to < current else ENOUGH
        )
    return Decision(current, to, reason, SIGNAL, numbers.get("forecast"), 0.0, message, numbers)


def _words(reason: str, name: str) -> str:
    """The part of the policy's sentence that speaks of one pool."""
    first, found, second = reason.partition("; decode: ")
    if not found:
        return reason
    return first.removeprefix("prefill: ") if name == "prefill" else second
