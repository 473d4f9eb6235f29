"""PURE: The names, labels and owner references of the objects of a DisaggDeployment."""

from __future__ import annotations

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.base import API_VERSION
from disagg_operator.vocabulary import FIELD_MANAGER, Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_POOL
from disagg_wire.roles import ROLES


def pool_name(name: str, role: str) -> str:
    return f"{name}-{role}"


def router_name(name: str) -> str:
    return f"{name}-router"


def key_secret_name(name: str) -> str:
    return f"{name}-cluster-key"


def network_name(name: str) -> str:
    return f"{name}-kv"


def labels(name: str, component: str) -> dict[str, str]:
    """Return the labels of an object.

    `component` is prefill, decode, router, worker (both pools) or shared.
    """
    out = {
        "app.kubernetes.io/name": "disagg",
        "app.kubernetes.io/instance": name,
        LABEL_COMPONENT: component,
        "app.kubernetes.io/managed-by": FIELD_MANAGER,
        LABEL_DEPLOYMENT: name,
    }
    return out | ({LABEL_POOL: component} if component in ROLES else {})


def selector(name: str, component: str) -> dict[str, str]:
    """Return the labels by which pods are selected, which never change."""
    return {LABEL_COMPONENT: component, LABEL_DEPLOYMENT: name}


def selector_text(name: str, component: str) -> str:
    """Return the label selector as text, sorted by key."""
    return ",".join(f"{k}={v}" for k, v in sorted(selector(name, component).items()))


def owned_by_deployment(dd: DisaggDeployment, uid: str) -> list[Obj]:
    """Return the owner references of an object that the DisaggDeployment owns."""
    return [_owner("DisaggDeployment", dd.metadata.name, uid)]


def owned_by_pool(dd: DisaggDeployment, role: str, uid: str) -> list[Obj]:
    """Return the owner references of an object that a DisaggPool owns."""
    return [_owner("DisaggPool", pool_name(dd.metadata.name, role), uid)]


def _owner(kind: str, name: str, uid: str) -> Obj:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(
    dd: DisaggDeployment, name: str, component: str, owners: list[Obj], annotations: dict[str, str] | None = None
) -> Obj:
    """Return the metadata of an object that belongs to a DisaggDeployment."""
    out: Obj = {
        "name": name,
        "namespace": dd.metadata.namespace,
        "labels": labels(dd.metadata.name, component),
        "ownerReferences": owners,
    }
    return out | ({"annotations": annotations} if annotations else {})
