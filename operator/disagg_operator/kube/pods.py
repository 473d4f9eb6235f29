"""PURE: Facts that are read off a pod as the API server gives it."""

from __future__ import annotations

from disagg_operator.kube.resources import labels_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_POOL


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
