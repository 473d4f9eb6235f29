"""PURE: The facts about a pool's pods that Kubernetes knows, as the policy uses them.

The pods are plain dicts; a missing field is never an error. The times in a pod come from the clocks
of several machines, so an age is measured from when this process first saw the pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.policy.observation import UNKNOWN, Pods
from disagg_operator.kube.pods import epoch_s, is_leaving, is_ready
from disagg_operator.kube.resources import uid_of
from disagg_operator.vocabulary import Obj

_KEPT_STARTS = 16
_LONGEST_S = 7200.0
_CLOCKS_DIFFER_S = 60.0


@dataclass(frozen=True, slots=True)
class Starts:
    """The seconds that the most recent pods took from creation to ready, by uid, oldest first."""

    taken_s: Mapping[str, float] = field(default_factory=dict)
    seen_s: Mapping[str, float] = field(default_factory=dict)
    """When each pod that was not ready was first seen, in seconds since 1970 on our own clock."""

    @property
    def mean_s(self) -> float:
        """Mean of the seconds, or NaN if no start has been seen."""
        return sum(self.taken_s.values()) / len(self.taken_s) if self.taken_s else UNKNOWN


def note_seen(starts: Starts, pods: Iterable[Obj], now_s: float) -> Starts:
    """Return `starts` with the pods of a pool that have been seen before they were ready."""
    begun = {uid_of(pod): starts.seen_s.get(uid_of(pod), UNKNOWN if is_ready(pod) else now_s) for pod in pods}
    return replace(starts, seen_s={uid: at_s for uid, at_s in begun.items() if at_s == at_s})


def note_starts(starts: Starts, pods: Iterable[Obj], now_s: float = UNKNOWN) -> Starts:
    """Return `starts` with the pods that have become ready."""
    found = dict(starts.taken_s)
    fresh = [pod for pod in pods if is_ready(pod) and uid_of(pod) not in found]
    for pod in sorted(fresh, key=lambda pod: str(pod["metadata"].get("creationTimestamp"))):
        ready: Obj = next(
            (c for c in (pod.get("status") or {}).get("conditions") or [] if c.get("type") == "Ready"), {}
        )
        taken_s = epoch_s(ready.get("lastTransitionTime")) - epoch_s(pod["metadata"].get("creationTimestamp"))
        # If we saw it start and our clock says otherwise, then some machine's clock is wrong.
        if abs(now_s - starts.seen_s.get(uid_of(pod), UNKNOWN) - taken_s) > _CLOCKS_DIFFER_S:
            continue
        # If a pod has lost its readiness in between, the transition time is not that of its start.
        if 0 <= taken_s <= _LONGEST_S and not _restarted(pod):
            found[uid_of(pod)] = max(taken_s, 0.5)  # times are in whole seconds
    return replace(starts, taken_s=dict(list(found.items())[-_KEPT_STARTS:]))


def facts(pods: Iterable[Obj], replicas: int, now_s: float, starts: Starts) -> Pods:
    """Return the facts about the pods of one pool.

    `replicas` is the number that the pool is set to, and `now_s` the seconds since 1970.
    """
    ready, draining = 0, 0
    ages: list[float] = []
    unplaced: list[float] = []
    for pod in pods:
        if is_leaving(pod):
            draining += 1
        elif is_ready(pod):
            ready += 1
        elif (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            age_s = now_s - starts.seen_s.get(uid_of(pod), epoch_s(pod["metadata"].get("creationTimestamp")))
            ages.append(max(0.0, age_s) if age_s == age_s else 0.0)
            if _unschedulable(pod):
                unplaced.append(ages[-1])
    in_order = (tuple(sorted(found, reverse=True)) for found in (ages, unplaced))
    return Pods(replicas, ready, next(in_order), draining, starts.mean_s, next(in_order))


def _unschedulable(pod: Obj) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)


def _restarted(pod: Obj) -> bool:
    return any(c.get("restartCount") for c in (pod.get("status") or {}).get("containerStatuses") or [])
