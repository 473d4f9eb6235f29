"""PURE: The safeguards around the predictive policy, without which it may not scale pods.

A pool that the operator does not scale keeps its size. A pool with unknown signals is not scaled
down. A declared window damps scaling down. A short loss of metrics is not reported, a longer one
is.
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
# A single failed scrape is not reported as a loss of metrics.
BLIND_AFTER_S = 15.0


@dataclass(frozen=True, slots=True)
class Predicting:
    """The memory of the predictive policy for one deployment."""

    state: State = field(default_factory=State)
    """The state of the policy."""
    wanted: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    """(time, workers) of the recent steps of each pool with a declared window, by pool."""
    seen_s: float = math.nan
    """The time at which metrics were last available; NaN before the first step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one step of a policy, with all that is needed to make the step again."""

    observation: Observation
    """The observation that the policy was given."""
    targets: Targets
    """The answer of the policy."""
    decisions: Mapping[str, Decision]
    """The resulting decision for each pool that the operator scales, by pool."""
    settings: Settings
    """The predictive policy's settings at this step."""
    before: State
    """The predictive policy's state before this step."""
    queue: QueueStart | None = None
    """The rules and memories before this step if the policy is `queue`, otherwise None."""
    samples: Mapping[str, QueueSample] = field(default_factory=dict)
    """The samples that the policy `queue` was given, by pool."""


def step(
    settings: Settings,
    pools: Mapping[str, PoolRules],
    down_windows_s: Mapping[str, float],
    folded: Folded,
    memory: Predicting,
) -> tuple[Outcome | None, Predicting]:
    """Process one observation. The outcome is None if nothing is decided and everything stays.

    `pools` holds the rules of the pools that are scaled.
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
        seen_s = -math.inf  # no metrics from the start: reported once, at once
    return Outcome(o, targets, decisions, settings, memory.state), replace(
        memory, state=state, wanted=wanted, seen_s=seen_s
    )


def seen_whole(o: Observation) -> Observation:
    """Return the observation, as a blind one if the arriving or the generated work is unknown.

    An incomplete observation would be mistaken for one without load.
    """
    needed = (o.prefill.arrivals, o.prefill.prompt_tokens, o.prefill.prompt_tokens_squared, o.decode.generated_tokens)
    if not any(map(math.isnan, needed)):
        return o
    return replace(o, prefill=replace(o.prefill, arrivals=math.nan))


def fixed(settings: Settings, pools: Mapping[str, PoolRules], o: Observation) -> Settings:
    """Return the settings with each pool that is not scaled fixed to its present size."""
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
    """Return (the fewest workers, the reason) if something forbids scaling down, else (0, "")."""
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
    message = reason_of(targets.reason, name)
    least, why = held
    if to < least:
        to = least
        cause = "some pods did not answer" if why == PARTIAL_METRICS else "scaling down waits for its window"
        message = f"{message}; {cause}"
    if o.blind:
        reason = METRICS_UNAVAILABLE
    elif not bounds.min_replicas <= current <= bounds.max_replicas:
        reason = BELOW_MINIMUM if current < bounds.min_replicas else ABOVE_MAXIMUM
    else:
        reason = (
            why if why and to == current else FORECAST_UP if to > current else FORECAST_DOWN if to < current else ENOUGH
        )
    unmet = None if o.blind else targets.unmet.get(name, "")
    limit = targets.limits.get(name, "")
    return Decision(current, to, reason, SIGNAL, numbers.get("forecast"), 0.0, message, numbers, unmet, limit)


def reason_of(reason: str, name: str) -> str:
    """Return the part of the policy's reason that concerns one pool."""
    first, found, second = reason.partition("; decode: ")
    if not found:
        return reason
    return first.removeprefix("prefill: ") if name == "prefill" else second
