"""PURE: What the objects of a cluster say about a rollout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from disagg_operator.kube.pods import epoch_s, is_leaving, is_ready, is_terminating, pool_of
from disagg_operator.kube.resources import DEPLOYMENT, annotations_of, labels_of, name_of
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.values import Devices, Workers, WorkersKey
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION
from disagg_wire.roles import DECODE, PREFILL, ROLES

# On a workload: its workers have served; the value is their compatibility, if it was told.
SERVED_ANNOTATION = "disagg.dev/served"
_UNTOLD = "yes"
# What the scheduler says of a pod for which other pods could make room.
_ROOM_WORDS = ("Insufficient ", "Too many pods")


@dataclass(frozen=True, slots=True)
class Told:
    """What the routers told: the compatibility of workers by pod, and the pairs that moved KV."""

    compat: Mapping[str, str] = field(default_factory=dict)
    links: frozenset[tuple[str, str]] = frozenset()
    all_healthy: bool = False
    """Whether every expected pair has moved KV, where single pairs are not told."""


def workloads(objects: Iterable[Obj]) -> dict[WorkersKey, Obj]:
    """Return the Deployments of workers by role and revision."""
    out = {}
    for obj in objects:
        labels = labels_of(obj)
        if obj.get("kind") == DEPLOYMENT.kind and labels.get(LABEL_POOL) in ROLES and labels.get(LABEL_REVISION):
            out[labels[LABEL_POOL], labels[LABEL_REVISION]] = obj
    return out


def pods_of(pods: Iterable[Obj], key: WorkersKey) -> list[Obj]:
    """Return the pods of one role and revision."""
    return [pod for pod in pods if (pool_of(pod), labels_of(pod).get(LABEL_REVISION)) == key]


def workers(
    key: WorkersKey, deployment: Obj | None, pods: Sequence[Obj], told: Told, order: int, accelerators: frozenset[str]
) -> Workers:
    """Return the workers of one role and revision.

    Those that drain before they are deleted count as terminating already, and not as wanted.
    """
    here = [pod for pod in pods if not is_leaving(pod)]
    replicas = 0 if deployment is None else int((deployment.get("spec") or {}).get("replicas") or 0)
    kept = sum(not is_terminating(pod) for pod in pods)
    # Of the pods that are to go, those beyond the replicas are as good as deleted.
    draining = max(0, kept - len(here) - max(0, kept - replicas))
    mark = "" if deployment is None else annotations_of(deployment).get(SERVED_ANNOTATION, "")
    compat = next((told.compat[name_of(pod)] for pod in here if told.compat.get(name_of(pod))), "")
    return Workers(
        *key,
        desired=replicas - draining,
        existing=len(here),
        ready=sum(map(is_ready, here)),
        terminating=len(pods) - len(here),
        recallable=draining,
        unscheduled=sum(not (pod.get("spec") or {}).get("nodeName") and not is_ready(pod) for pod in here),
        unschedulable_since_s=min((s for s in map(_no_room_since_s, here) if s is not None), default=None),
        served=bool(mark),
        compat=compat or ("" if mark == _UNTOLD else mark),
        devices=devices_of(deployment, accelerators),
        order=order,
    )


def served_mark(found: Workers) -> str:
    """Return the value of the annotation of workers that have served."""
    return found.compat or _UNTOLD


def devices_of(deployment: Obj | None, accelerators: frozenset[str]) -> Devices:
    """Return what one pod of a workload holds."""
    template = ((deployment or {}).get("spec") or {}).get("template") or {}
    pod = template.get("spec") or {}
    counts: dict[str, int] = {}
    for container in pod.get("containers") or []:
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if name in accelerators and str(amount).isdigit():
                counts[name] = counts.get(name, 0) + int(amount)
    name = max(counts, key=lambda n: counts[n], default="")
    if not name or counts[name] == 0:
        return Devices()
    nodes = ",".join(f"{k}={v}" for k, v in sorted((pod.get("nodeSelector") or {}).items()))
    return Devices(f"{name} of {nodes}" if nodes else name, counts[name])


def _no_room_since_s(pod: Obj) -> float | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            since_s = epoch_s(condition.get("lastTransitionTime"))
            fits_later = any(word in str(condition.get("message")) for word in _ROOM_WORDS)
            return since_s if fits_later and since_s == since_s else None
    return None


def linked(told: Told | None, pods: Iterable[Obj], target: Mapping[str, str]) -> bool | None:
    """Return whether a pair of the target has moved KV; None if no router has told lately."""
    if told is None:
        return None
    if not told.links:
        return told.all_healthy
    names = {role: {name_of(p) for p in pods_of(pods, (role, target[role]))} for role in ROLES}
    return any(prefill in names[PREFILL] and decode in names[DECODE] for prefill, decode in told.links)


def pairs_of(known: Iterable[KnownRevision], live: Iterable[WorkersKey]) -> frozenset[tuple[str, str]]:
    """Return the revisions that belong together: those of one spec, and those of no known one.

    The latter are of an operator that kept no history; it had one revision at a time.
    """
    recorded = {r.pair for r in known}
    strangers = {
        role: [rev for r, rev in live if r == role and all(k.of(role) != rev for k in known)] for role in ROLES
    }
    return frozenset(recorded | {(p, d) for p in strangers[PREFILL] for d in strangers[DECODE]})


def order_of(known: Iterable[KnownRevision], key: WorkersKey) -> int:
    """Return the number of the newest revision that has these workers; 0 for an unknown one."""
    return max((r.number for r in known if r.of(key[0]) == key[1]), default=0)
