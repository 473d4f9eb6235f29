"""PURE: The policy `queue` for both pools: its steps, which can be repeated from their record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling.policy import queue_depth
from disagg_operator.autoscaling.policy.decision import Decision, PoolRules
from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory, QueueSample
from disagg_wire.roles import ROLES

_LEAST_TARGET, _MOST_TARGET = 1e-3, 1e9


@dataclass(frozen=True, slots=True)
class QueueStart:
    """The start of a run: the rules of the pools that are scaled, and the state of each."""

    pools: dict[str, PoolRules]
    states: dict[str, QueueMemory]


def step(
    pools: Mapping[str, PoolRules],
    states: Mapping[str, QueueMemory],
    samples: Mapping[str, QueueSample],
    o: Observation,
) -> tuple[dict[str, Decision], dict[str, QueueMemory]]:
    """Take one step for each pool that is scaled."""
    decisions, after = {}, {}
    for pool, rules in pools.items():
        decisions[pool], after[pool] = queue_depth.step(
            rules, samples[pool], o.pods(pool).replicas, states.get(pool, QueueMemory())
        )
    return decisions, after


def targets(o: Observation, decisions: Mapping[str, Decision]) -> Targets:
    """Return the decisions as the targets that other policies answer with.

    A pool that is not scaled keeps its size.
    """
    prefill, decode = (decisions[pool].to if pool in decisions else o.pods(pool).replicas for pool in ROLES)
    numbers = {}
    for pool, decision in decisions.items():
        numbers[f"{pool}_target"] = decision.target
        if decision.value is not None:
            numbers[f"{pool}_requests_per_worker"] = float(f"{decision.value:.4g}")
    reason = "; ".join(f"{pool}: {words(decision)}" for pool, decision in decisions.items())
    limits = {pool: decision.limit for pool, decision in decisions.items() if decision.limit}
    return Targets(prefill, decode, reason, numbers, limits=limits)


def words(decision: Decision) -> str:
    """Return the decision for one pool in a sentence."""
    if decision.blind or decision.value is None:
        seen = "not all metrics are there"
    else:
        seen = f"{decision.value:.3g} requests a worker, {decision.target:.3g} wanted"
    change = f"{decision.current} stay" if decision.to == decision.current else f"{decision.current} -> {decision.to}"
    return f"{seen}: {change} ({decision.reason})"


def sample_of(o: Observation, pool: str) -> QueueSample:
    """Return the sample that this policy would have been given, from an observation.

    It serves for records of another policy, which hold no samples.
    """
    signals = o.prefill if pool == "prefill" else o.decode
    requests = signals.waiting_requests + signals.running_requests
    return QueueSample(o.now_s, None if math.isnan(requests) else requests)


def check(pools: Mapping[str, PoolRules]) -> None:
    """Check recorded rules. Raises ValueError, which names the setting that is out of range."""
    for pool, rules in pools.items():
        if pool not in ROLES:
            raise ValueError(f"{pool}: no such pool")
        if not 0 <= rules.min_replicas <= rules.max_replicas:
            raise ValueError(f"{pool}.min_replicas: must be from 0 to max_replicas")
        if not _LEAST_TARGET <= rules.target <= _MOST_TARGET:
            raise ValueError(f"{pool}.target: must be a number of requests above 0")
        for name in ("up_window_s", "down_window_s", "tolerance", "smoothing_s"):
            if not 0 <= getattr(rules, name) < math.inf:
                raise ValueError(f"{pool}.{name}: must be at least 0")
