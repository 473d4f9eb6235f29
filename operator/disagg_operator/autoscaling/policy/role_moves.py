"""PURE: a worker that moves to the other pool: which one, and what of the decisions it takes over.

How a pod moves: the worker drains and changes its role (docs/protocol.md), keeping weights and
cache memory; then the other pool's number goes up, the pod's labels become those of the other
pool's ReplicaSet, which adopts it, and then the number of the pool that gave it goes down. In that
order neither ReplicaSet ever has a reason to delete a worker that serves; each may start a pod for
a moment, and takes it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_wire.roles import ROLES


@dataclass(slots=True)
class Flip:
    """One move under way.

    `changed`: the worker has its new role, and the pod's labels are to follow.
    """

    pod: str
    giving: str
    taking: str
    since_s: float
    changed: bool = False
    sizes: dict[str, int] = field(default_factory=dict)  # of both pools afterwards, once the labels are to follow


def wanted(targets: Targets, decisions: Mapping[str, Decision]) -> tuple[str, str, int] | None:
    """(giving pool, taking pool, how many) when the policy asks for it and both pools may really
    change so.
    """
    if targets.flip == 0 or not all(role in decisions for role in ROLES):
        return None
    giving, taking = ROLES if targets.flip > 0 else ROLES[::-1]
    give = decisions[giving].current - decisions[giving].to
    take = decisions[taking].to - decisions[taking].current
    count = min(abs(targets.flip), give, take)
    return (giving, taking, count) if count > 0 else None


def idlest(loads: Mapping[str, float], pods: Iterable[str]) -> str | None:
    """The pod that holds the fewest requests; one whose load is not known is as busy as any."""
    highest = max(loads.values(), default=0.0)
    return min(sorted(pods), key=lambda pod: loads.get(pod, highest), default=None)


def without(decisions: Mapping[str, Decision], giving: str, taking: str, count: int) -> dict[str, Decision]:
    """The decisions less what moves between the pools: nobody shall delete a pod and start another
    for it.
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
    """Return the move of the idlest worker that the policy asks for, unless its pool has no other.

    `pods` names the ready pods of each pool.
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
    """Return (pod, pool) of each worker whose role is not that of its pool, but for the one that is moving."""
    return [
        (pod, pool)
        for pool, names in pods.items()
        for pod in names
        if pod != moving and roles.get(pod) in ROLES and roles[pod] != pool
    ]
