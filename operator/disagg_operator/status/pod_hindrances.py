"""PURE: What keeps the kubelet from starting a pod, as its Events tell it.

A pod that waits for a volume or for its network says no more than ContainerCreating. The words are
in the Events alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from disagg_operator.kube.pods import epoch_s, pool_of
from disagg_operator.vocabulary import Obj
from disagg_wire.problems import WorkerProblem

FAILED_MOUNT, FAILED_ATTACH_NETWORK, POD_SANDBOX = "FailedMount", "FailedAttachNetwork", "PodSandbox"
_REASONS = {"FailedMount": FAILED_MOUNT, "FailedAttachVolume": FAILED_MOUNT, "FailedMapVolume": FAILED_MOUNT}
_SANDBOX = "FailedCreatePodSandBox"
_NETWORK = re.compile(r"network|cni|multus|interface|ipam", re.IGNORECASE)
_VOLUME = re.compile(r'volume "([^"]+)"|unmounted volumes=\[([^\],]+)')
_NETWORK_FIELD = "spec.kvTransfer.network"
_STARTING = ("ContainerCreating", "PodInitializing")


def is_stuck(pod: Obj) -> bool:
    """Return whether a pod has a node and waits for the kubelet to start its first container."""
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp") or status.get("phase") != "Pending":
        return False
    conditions = status.get("conditions") or []
    if not any(c.get("type") == "PodScheduled" and c.get("status") == "True" for c in conditions):
        return False
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waiting = [((c.get("state") or {}).get("waiting") or {}).get("reason") for c in containers]
    return all(reason in _STARTING for reason in waiting)


def hindrance(pod: Obj, events: Sequence[Obj]) -> WorkerProblem | None:
    """Return what hinders a pod that is stuck, or None.

    Only the last event counts: what came before it has been overcome.
    """
    last = max(events, key=_at_s, default=None)
    if last is None or last.get("type") != "Warning":
        return None
    reason, message = str(last.get("reason", "")), str(last.get("message", ""))
    if reason in _REASONS:
        return WorkerProblem(_REASONS[reason], _with_field(f"{reason}: {message}", _volume_field(pod, message)))
    if reason == _SANDBOX:
        attached = _NETWORK.search(message) is not None
        field = _NETWORK_FIELD if attached and _has_networks(pod) else ""
        return WorkerProblem(
            FAILED_ATTACH_NETWORK if attached else POD_SANDBOX, _with_field(f"{reason}: {message}", field)
        )
    return None


def _at_s(event: Obj) -> float:
    series = event.get("series") or {}
    times = (
        event.get("lastTimestamp"),
        event.get("eventTime"),
        series.get("lastObservedTime"),
        event.get("firstTimestamp"),
    )
    return max((at_s for text in times if (at_s := epoch_s(text)) == at_s), default=0.0)


def _with_field(message: str, field: str) -> str:
    return f"{message} ({field})" if field else message


def _has_networks(pod: Obj) -> bool:
    return "k8s.v1.cni.cncf.io/networks" in (pod["metadata"].get("annotations") or {})


def _volume_field(pod: Obj, message: str) -> str:
    """Return the field of the resource from which a volume is made, or ""."""
    found = _VOLUME.search(message)
    name = "" if found is None else found[1] or found[2]
    role = pool_of(pod)
    own = {
        "model": "spec.model.uri",
        "api-keys": "spec.router.apiKeysSecretRef",
        "trace-headers": "spec.observability.tracing.headersSecretRef",
        "trace-ca": "spec.observability.tracing.caSecretRef",
    }
    if name in own:
        return own[name]
    if name in ("", "cluster-key", "tmp", "cache", "shm") or not role or name.startswith("kube-api-access"):
        return ""
    return f"spec.{role}.podTemplate.spec.volumes[{name}]"
