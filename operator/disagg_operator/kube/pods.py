"""PURE: Facts that are read off a pod as the API server gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_operator.kube.resources import labels_of, name_of, uid_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER
from disagg_wire.roles import ROLES


def is_ready(pod: Obj) -> bool:
    """Ready, and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def http_port(pod: Obj, default: int) -> int:
    """The port named `http` of a pod's containers."""
    for container in (pod.get("spec") or {}).get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == "http":
                return int(port.get("containerPort", default))
    return default


def pool_of(obj: Obj) -> str:
    """`prefill`, `decode` or "" (the router's pods carry no pool)."""
    return labels_of(obj).get(LABEL_POOL, "")


def address_of(pod: Obj) -> str:
    """Return the pod's IP address, or "" while it has none."""
    return str((pod.get("status") or {}).get("podIP") or "")


def identity_of(pod: Obj) -> str:
    """Return the pod's UID, or its name where it has none (in tests and on one machine)."""
    return uid_of(pod) or name_of(pod)


@dataclass(frozen=True, slots=True)
class DeploymentPods:
    """The pods of one deployment."""

    routers: tuple[Obj, ...]
    """The routers that are ready."""
    workers: Mapping[str, tuple[Obj, ...]]
    """The workers of each pool that are ready."""
    all_of: Mapping[str, tuple[Obj, ...]]
    """All workers of each pool."""


def sort_pods(pods: Sequence[Obj]) -> DeploymentPods:
    """Return the pods of a deployment by what they are. A pod without an address is not ready."""
    ready = [pod for pod in pods if is_ready(pod) and address_of(pod)]
    workers = {role: tuple(pod for pod in ready if pool_of(pod) == role) for role in ROLES}
    routers = tuple(pod for pod in ready if labels_of(pod).get(LABEL_COMPONENT) == ROUTER)
    return DeploymentPods(routers, workers, {role: tuple(p for p in pods if pool_of(p) == role) for role in ROLES})
