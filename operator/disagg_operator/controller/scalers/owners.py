"""PURE: Finds who else sets the replicas of a target: two programs must not set one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disagg_operator.api.disagg_scaler import ACTIVE, ScaleTarget
from disagg_operator.kube.resources import HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT, name_of
from disagg_operator.vocabulary import Obj

# Kinds that their parents make only to be scaled by somebody else.
_MADE_TO_BE_SCALED = {("disaggregatedset.x-k8s.io", "DisaggregatedSetRoleScaler")}


def other_owner(
    target: ScaleTarget,
    obj: Obj,
    scaled_objects: Sequence[Obj],
    autoscalers: Sequence[Obj],
    scalers: Sequence[Obj],
    me: Obj,
) -> str | None:
    """Return who else sets the replicas of a target, by kind and name; None if nobody does.

    `obj` is the target as it is, the others are the objects of its namespace, and `me` is the
    DisaggScaler that asks.
    """
    parent = next((ref for ref in obj["metadata"].get("ownerReferences") or [] if ref.get("controller")), None)
    if parent is not None and (_group(target.api_version), target.kind) not in _MADE_TO_BE_SCALED:
        return f"{parent.get('kind')} {parent.get('name')}"
    # KEDA makes an autoscaler of each ScaledObject: the latter is what somebody wrote.
    for kind, objects in ((SCALED_OBJECT.kind, scaled_objects), (HORIZONTAL_POD_AUTOSCALER.kind, autoscalers)):
        for other in objects:
            if _aims_at((other.get("spec") or {}).get("scaleTargetRef"), target):
                return f"{kind} {name_of(other)}"
    for other in scalers:
        if _age(other) < _age(me) and _takes(other, target):
            return f"{other.get('kind')} {name_of(other)}"
    return None


def _takes(scaler: Obj, target: ScaleTarget) -> bool:
    """Return whether an active DisaggScaler scales a target."""
    spec: Mapping[str, Any] = scaler.get("spec") or {}
    pools = ((spec.get(role) or {}).get("scaleTargetRef") for role in ("prefill", "decode"))
    return spec.get("mode") == ACTIVE and any(_aims_at(ref, target) for ref in pools)


def _aims_at(ref: Any, target: ScaleTarget) -> bool:
    """Return whether a reference names a target; the version of the API does not matter."""
    if not isinstance(ref, Mapping):
        return False
    default = ScaleTarget(name=target.name)
    group = _group(str(ref.get("apiVersion") or default.api_version))
    found = (group, str(ref.get("kind") or default.kind), ref.get("name"))
    return found == (_group(target.api_version), target.kind, target.name)


def _group(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def _age(scaler: Obj) -> tuple[str, str]:
    meta = scaler["metadata"]
    return str(meta.get("creationTimestamp", "")), str(meta.get("uid", ""))
