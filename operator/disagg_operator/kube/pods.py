"""PURE: The facts that are read from a pod as the API server returns it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_operator.kube.resources import annotations_of, labels_of, name_of, uid_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER
from disagg_wire.roles import ROLES

# On the pod of a worker that is to go: until when it may finish its requests. Meanwhile it gets no
# new ones.
DRAIN_UNTIL = "disagg.dev/drain-until"


def is_terminating(pod: Obj) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def is_leaving(pod: Obj) -> bool:
    """Return whether a pod terminates, or is about to."""
    return is_terminating(pod) or DRAIN_UNTIL in annotations_of(pod)


def is_ready(pod: Obj) -> bool:
    """Return whether a pod is ready and not terminating."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def epoch_s(text: object) -> float:
    """Return an RFC 3339 time as seconds since 1970, or NaN for anything else."""
    try:
        found = datetime.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return math.nan
    # Without an offset, the time would be one of wherever this process runs.
    return math.nan if found.tzinfo is None else found.timestamp()


def http_port(pod: Obj, default: int) -> int:
    """Return the port named `http` of a pod's containers, or `default` if none has that name."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == "http":
                return int(port.get("containerPort", default))
    return default


def pool_of(obj: Obj) -> str:
    """Return the pool of an object: `prefill`, `decode` or "" (a router belongs to no pool)."""
    return labels_of(obj).get(LABEL_POOL, "")


def address_of(pod: Obj) -> str:
    """Return the IP address of a pod, or "" while it has none."""
    return str((pod.get("status") or {}).get("podIP") or "")


def identity_of(pod: Obj) -> str:
    """Return the UID of a pod, or its name if it has no UID (in tests and without a cluster)."""
    return uid_of(pod) or name_of(pod)


@dataclass(frozen=True, slots=True)
class DeploymentPods:
    """The pods of one DisaggDeployment."""

    routers: tuple[Obj, ...]
    """The ready routers."""
    workers: Mapping[str, tuple[Obj, ...]]
    """The ready workers of each pool."""
    all_of: Mapping[str, tuple[Obj, ...]]
    """All workers of each pool."""


def sort_pods(pods: Sequence[Obj]) -> DeploymentPods:
    """Sort the pods of a DisaggDeployment by component. A pod without an address is not ready."""
    ready = [pod for pod in pods if is_ready(pod) and address_of(pod)]
    workers = {role: tuple(pod for pod in ready if pool_of(pod) == role) for role in ROLES}
    routers = tuple(pod for pod in ready if labels_of(pod).get(LABEL_COMPONENT) == ROUTER)
    return DeploymentPods(routers, workers, {role: tuple(p for p in pods if pool_of(p) == role) for role in ROLES})
