"""PURE: Whether a node can run a pod: its labels, taints and devices, and what is in the way.

It is what the scheduler asks, without what other pods hold: enough to tell a node pool that cannot
fit from one that is full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disagg_operator.kube.resources import labels_of
from disagg_operator.vocabulary import Obj

_EFFECTS = ("NoSchedule", "NoExecute")


def devices_of(pod: Obj) -> dict[str, int]:
    """Return the extended resources that the containers of a pod's spec request."""
    out: dict[str, int] = {}
    for container in pod.get("containers") or []:
        requests = (container.get("resources") or {}).get("requests") or {}
        for name, quantity in requests.items():
            if "/" in name and str(quantity).isdigit():
                out[name] = out.get(name, 0) + int(quantity)
    return out


def allocatable(node: Obj, resource: str) -> int:
    """Return how many of an extended resource a node has for pods."""
    text = str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))
    return int(text) if text.isdigit() else 0


def hindrance(node: Obj, pod: Obj, devices: Mapping[str, int]) -> str:
    """Return what keeps a pod with these devices from a node, in a few words, or an empty text."""
    for name, count in devices.items():
        if (there := allocatable(node, name)) < count:
            return f"{there} of {count} {name}"
    spec = node.get("spec") or {}
    if spec.get("unschedulable") is True:
        return "cordoned"
    labels = labels_of(node)
    for key, value in (pod.get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"no label {key}={value}"
    if not _affine(labels, pod):
        return "not selected by the node affinity"
    for taint in spec.get("taints") or []:
        if taint.get("effect") in _EFFECTS and not _tolerated(taint, pod.get("tolerations") or []):
            return f"taint {taint.get('key')}"
    return ""


def _tolerated(taint: Obj, tolerations: Sequence[Obj]) -> bool:
    for t in tolerations:
        of_key = t.get("key") in (None, "", taint.get("key"))
        of_effect = t.get("effect") in (None, "", taint.get("effect"))
        exists = t.get("operator") == "Exists"
        if of_key and of_effect and (exists or (t.get("key") and t.get("value", "") == taint.get("value", ""))):
            return True
    return False


def _affine(labels: Mapping[str, str], pod: Obj) -> bool:
    """Return whether one of the required terms of a pod's node affinity matches."""
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    terms = (affinity or {}).get("nodeSelectorTerms")
    if not terms:
        return True
    # Terms by fields name single nodes; they are left to the scheduler.
    return any(all(_matches(labels, e) for e in term.get("matchExpressions") or []) for term in terms)


def _matches(labels: Mapping[str, str], expression: Mapping[str, Any]) -> bool:
    key, values = str(expression.get("key")), [str(v) for v in expression.get("values") or []]
    found = labels.get(key)
    match expression.get("operator"):
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator if found is not None and found.isdigit() and values and values[0].isdigit():
            return int(found) > int(values[0]) if operator == "Gt" else int(found) < int(values[0])
    return False
