"""PURE: The kinds that the operator reads and writes, and their paths on the API server.

They form one table, so that no other module builds a path. Names that come from objects are
checked before they become part of a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from disagg_operator.vocabulary import Key, Obj

GROUP = "disagg.dev"
VERSION = "v1alpha1"
_SEGMENT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of the Kubernetes API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True
    optional: bool = False
    """Whether a cluster may lack this API; a LIST then returns no objects."""

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the URL path of the collection, or of one object if `name` is given.

        `namespace=None` means all namespaces. Raises ValueError for a name unfit for a path.
        """
        prefix = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        middle = f"/namespaces/{segment(namespace)}" if self.namespaced and namespace else ""
        tail = f"/{segment(name)}" if name is not None else ""
        return f"{prefix}{middle}/{self.plural}{tail}"


DISAGG_DEPLOYMENT = Resource(f"{GROUP}/{VERSION}", "DisaggDeployment", "disaggdeployments")
DISAGG_POOL = Resource(f"{GROUP}/{VERSION}", "DisaggPool", "disaggpools")
# Optional, because an operator may be upgraded before the CRDs are.
DISAGG_SCALER = Resource(f"{GROUP}/{VERSION}", "DisaggScaler", "disaggscalers", optional=True)
SECRET = Resource("v1", "Secret", "secrets")
SERVICE_ACCOUNT = Resource("v1", "ServiceAccount", "serviceaccounts")
SERVICE = Resource("v1", "Service", "services")
CONFIG_MAP = Resource("v1", "ConfigMap", "configmaps")
POD = Resource("v1", "Pod", "pods")
NODE = Resource("v1", "Node", "nodes", namespaced=False)
EVENT = Resource("v1", "Event", "events")
REPLICA_SET = Resource("apps/v1", "ReplicaSet", "replicasets")
CONTROLLER_REVISION = Resource("apps/v1", "ControllerRevision", "controllerrevisions")
DEPLOYMENT = Resource("apps/v1", "Deployment", "deployments")
LEASE = Resource("coordination.k8s.io/v1", "Lease", "leases")
HORIZONTAL_POD_AUTOSCALER = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
SCALED_OBJECT = Resource("keda.sh/v1alpha1", "ScaledObject", "scaledobjects", optional=True)
ROLE = Resource("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDING = Resource("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
POD_DISRUPTION_BUDGET = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NETWORK_POLICY = Resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
PERSISTENT_VOLUME_CLAIM = Resource("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
PRIORITY_CLASS = Resource("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False)
RUNTIME_CLASS = Resource("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", namespaced=False)
RESOURCE_CLAIM_TEMPLATE = Resource(
    "resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates", optional=True
)
NETWORK_ATTACHMENT = Resource(
    "k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", "network-attachment-definitions", optional=True
)

ALL = (
    DISAGG_DEPLOYMENT, DISAGG_POOL, DISAGG_SCALER, SECRET, SERVICE_ACCOUNT, SERVICE, CONFIG_MAP, POD, NODE, EVENT,
    REPLICA_SET, CONTROLLER_REVISION, HORIZONTAL_POD_AUTOSCALER, SCALED_OBJECT,
    DEPLOYMENT, LEASE, ROLE, ROLE_BINDING, POD_DISRUPTION_BUDGET, NETWORK_POLICY, NETWORK_ATTACHMENT,
    PERSISTENT_VOLUME_CLAIM, PRIORITY_CLASS, RUNTIME_CLASS, RESOURCE_CLAIM_TEMPLATE,
)  # fmt: skip
_BY_KIND = {(r.api_version, r.kind): r for r in ALL}

# The kinds that a DisaggDeployment may own and that are listed by label. Secrets are not among
# them: the operator may get a Secret by name, but not list Secrets.
OWNED = (
    NETWORK_ATTACHMENT, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, DISAGG_POOL, SERVICE, DEPLOYMENT,
    POD_DISRUPTION_BUDGET, NETWORK_POLICY, CONTROLLER_REVISION,
)  # fmt: skip


def segment(value: str) -> str:
    """Return `value` if it may stand in a URL path unchanged. Raises ValueError otherwise."""
    if not _SEGMENT.fullmatch(value) or ".." in value:
        raise ValueError(f"not a name of a Kubernetes object: {value[:80]!r}")
    return value


def resource_of(obj: Obj) -> Resource:
    """Return the kind of an object. Raises ValueError for a kind that the operator does not use."""
    key = (str(obj.get("apiVersion")), str(obj.get("kind")))
    if key not in _BY_KIND:
        raise ValueError(f"unknown kind {key[1]} of {key[0]}")
    return _BY_KIND[key]


def name_of(obj: Obj) -> str:
    return str(obj["metadata"]["name"])


def namespace_of(obj: Obj) -> str | None:
    namespace = obj["metadata"].get("namespace")
    return None if namespace is None else str(namespace)


def object_key(obj: Obj) -> Key:
    """Return the namespace of an object, "" if it has none, and its name."""
    return str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


def uid_of(obj: Obj) -> str:
    return str(obj["metadata"].get("uid", ""))


def labels_of(obj: Obj) -> dict[str, str]:
    return dict(obj.get("metadata", {}).get("labels") or {})


def annotations_of(obj: Obj) -> dict[str, str]:
    return dict(obj.get("metadata", {}).get("annotations") or {})


def owned_by(obj: Obj, uids: frozenset[str]) -> bool:
    """Return whether an ownerReference of the object names one of `uids`."""
    return any(ref.get("uid") in uids for ref in obj.get("metadata", {}).get("ownerReferences") or [])
