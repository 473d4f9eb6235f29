"""PURE: Role flips: the choice of the worker that changes its pool, and the decisions that remain.

In a role flip a worker drains and changes its role (docs/protocol.md), but keeps its weights and
its cache memory. Then the other pool's number of replicas goes up, the pod's labels become those of
the other pool's ReplicaSet, which adopts the pod, and finally the number of the old pool goes down.
In this order neither ReplicaSet ever has a reason to delete a worker that serves. Either may start
a pod for a moment, and deletes it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_wire.roles import ROLES


@dataclass(slots=True)
class Flip:
    """One role flip in progress."""

    pod: str
    """The name of the pod."""
    giving: str
    """The pool that the worker leaves."""
    taking: str
    """The pool that the worker joins."""
    since_s: float
    """The time at which the flip began, on the monotonic clock."""
    changed: bool = False
    """Whether the worker has its new role, so that the pod's labels are to follow."""
    sizes: dict[str, int] = field(default_factory=dict)
    """The replicas of both pools after the flip, by pool; set when the labels are to follow."""


def wanted(targets: Targets, decisions: Mapping[str, Decision]) -> tuple[str, str, int] | None:
    """Return (giving pool, taking pool, workers) of the role flips that the policy asks for.

    Returns None if it asks for none, or if one of the pools may not change accordingly.
    """
    if targets.flip == 0 or not all(role in decisions for role in ROLES):
        return None
    giving, taking = ROLES if targets.flip > 0 else ROLES[::-1]
    give = decisions[giving].current - decisions[giving].to
    take = decisions[taking].to - decisions[taking].current
    count = min(abs(targets.flip), give, take)
    return (giving, taking, count) if count > 0 else None


def idlest(loads: Mapping[str, float], pods: Iterable[str]) -> str | None:
    """Return the pod that holds the fewest requests.

    A pod whose load is unknown counts as much as the busiest one.
    """
    highest = max(loads.values(), default=0.0)
    return min(sorted(pods), key=lambda pod: loads.get(pod, highest), default=None)


def without(decisions: Mapping[str, Decision], giving: str, taking: str, count: int) -> dict[str, Decision]:
    """Return the decisions without the workers that flip between the pools.

    Otherwise one pod would be deleted and another one started for it.
    """
    out = dict(decisions)
    if giving in out:
        out[giving] = replace(out[giving], to=max(out[giving].to, min(out[giving].current, out[giving].to + count)))
    if taking in out:
        out[taking] = replace(out[taking], to=min(out[taking].to, max(out[taking].current, out[taking].to - count)))
    return out


def chosen(
    targets: Targets,
    decisions: Mapping[str, Decision],
    loads: Mapping[str, float],
    pods: Mapping[str, Iterable[str]],
    now_s: float,
) -> Flip | None:
    """Return the role flip of the idlest worker if the policy asks for one, else None.

    `pods` names the ready pods of each pool. A pool never gives its only ready worker.
    """
    asked = wanted(targets, decisions)
    if asked is None:
        return None
    giving, taking, _ = asked
    candidates = list(pods[giving])
    pod = idlest(loads, candidates)
    return None if pod is None or len(candidates) < 2 else Flip(pod, giving, taking, now_s)


def strays(
    pods: Mapping[str, Iterable[str]], roles: Mapping[str, str | None], moving: str | None
) -> list[tuple[str, str]]:
    """Return (pod, pool) of each worker, except `moving`, whose role differs from its pool's."""
    return [
        (pod, pool)
        for pool, names in pods.items()
        for pod in names
        if pod != moving and roles.get(pod) in ROLES and roles[pod] != pool
    ]
