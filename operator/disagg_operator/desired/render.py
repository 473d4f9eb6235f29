"""PURE: The ordered list of objects of a DisaggDeployment, ready for server-side apply.

The DisaggDeployment owns the shared objects and the two DisaggPools; each DisaggPool owns its
Deployment, Service and PodDisruptionBudget.
"""

from __future__ import annotations

import base64
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.base import API_VERSION
from disagg_operator.api.network import Attachment, NetworkSpec
from disagg_operator.desired import attachments, names, pod_templates
from disagg_operator.desired.engine_inputs import peer_ports
from disagg_operator.desired.facts import Facts
from disagg_operator.desired.model_places import uses_hub
from disagg_operator.desired.pins import RUNTIME_ANNOTATION
from disagg_operator.desired.pod_parts import progress_deadline_s
from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION
from disagg_operator.desired.renderer import (
    NO_METADATA_SERVICES,
    PATIENT_ROLLOUT,
    ROUTER_POLICY,
    UNREADY_ARE_EVICTED,
)
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT, LABEL_POOL, LABEL_REVISION
from disagg_wire.ports import KV_PORT, ROUTER_PORT, WORKER_PORT
from disagg_wire.refused_addresses import REFUSED_IPV4, REFUSED_IPV6
from disagg_wire.roles import ROLES


def render(dd: DisaggDeployment, facts: Facts) -> list[Obj]:
    """Return all objects that should exist, in the order in which they must be applied."""
    out: list[Obj] = []
    if facts.cluster_key is not None:
        out.append(_key_secret(dd, facts, facts.cluster_key))
    network = dd.spec.kv_transfer.network
    if network is not None and network.attachment is not None and facts.attachments_available:
        out.append(_attachment(dd, facts, network, network.attachment))
    out += _accounts(dd, facts)
    if dd.spec.security.network_policy:
        out += _policies(dd, facts)
    for role in ROLES:
        out.append(_pool(dd, facts, role))
        if role in facts.pool_uids:
            out += _pool_children(dd, facts, role)
    return out + _router(dd, facts)


def _object(api_version: str, kind: str, metadata: Obj, **content: Any) -> Obj:
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **content}


def _shared(dd: DisaggDeployment, facts: Facts, name: str, component: str) -> Obj:
    return names.metadata(dd, name, component, names.owned_by_deployment(dd, facts.uid))


def _key_secret(dd: DisaggDeployment, facts: Facts, key: str) -> Obj:
    metadata = _shared(dd, facts, names.key_secret_name(dd.metadata.name), "shared")
    data = {"cluster-key": base64.b64encode(key.encode()).decode()}
    return _object("v1", "Secret", metadata, type="Opaque", immutable=True, data=data)


def _attachment(dd: DisaggDeployment, facts: Facts, network: NetworkSpec, attachment: Attachment) -> Obj:
    metadata = _shared(dd, facts, names.network_name(dd.metadata.name), "shared")
    if attachment.resource_name:
        metadata["annotations"] = {attachments.RESOURCE_ANNOTATION: attachment.resource_name}
    spec = {"config": attachments.attachment_config(dd, network, attachment, facts.images.renderer)}
    return _object("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", metadata, spec=spec)


def _accounts(dd: DisaggDeployment, facts: Facts) -> list[Obj]:
    """Return the service accounts of workers and routers and the rights of routers.

    Workers have no rights; routers may read the EndpointSlices of their namespace.
    """
    worker, router = f"{dd.metadata.name}-worker", names.router_name(dd.metadata.name)
    slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": router}
    subject = {"kind": "ServiceAccount", "name": router, "namespace": dd.metadata.namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        _object("v1", "ServiceAccount", _shared(dd, facts, worker, "worker"), automountServiceAccountToken=False),
        _object("v1", "ServiceAccount", _shared(dd, facts, router, "router")),
        _object(rbac, "Role", _shared(dd, facts, router, "router"), rules=[slices]),
        _object(rbac, "RoleBinding", _shared(dd, facts, router, "router"), roleRef=reference, subjects=[subject]),
    ]


def _from_component(name: str, component: str) -> Obj:
    return {"podSelector": {"matchLabels": names.selector(name, component)}}


def _from_anywhere(app: str) -> Obj:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": app}}}


def _policies(dd: DisaggDeployment, facts: Facts) -> list[Obj]:
    """Return the NetworkPolicies of the workers and of the routers.

    Clients of routers may be anywhere, but find only the port of the API. Workers accept
    connections from routers and scrapers on the HTTP port, and from each other on the KV port and
    on those of their engines, which are pinned to ranges that hold nothing else. They can reach
    DNS, each other and, for an hf:// model, the web. A NetworkPolicy does not govern a second
    network (Multus).
    """
    name = dd.metadata.name
    scrapers = [_from_anywhere("disagg-operator"), *facts.access.scrapers]
    http = {"from": [_from_component(name, "router"), *scrapers], "ports": [{"protocol": "TCP", "port": WORKER_PORT}]}
    kv = {"from": [_from_component(name, r) for r in ROLES], "ports": _between_workers(dd)}
    workers: Obj = {
        "podSelector": {
            "matchLabels": {LABEL_DEPLOYMENT: name},
            "matchExpressions": [{"key": LABEL_POOL, "operator": "Exists"}],
        },
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [http, kv],
        "egress": _worker_egress(dd, facts),
    }
    kind = ("networking.k8s.io/v1", "NetworkPolicy")
    found = [_object(*kind, _shared(dd, facts, f"{name}-workers", "worker"), spec=workers)]
    if facts.images.renderer >= ROUTER_POLICY:
        routers: Obj = {
            "podSelector": {"matchLabels": names.selector(name, "router")},
            "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"protocol": "TCP", "port": ROUTER_PORT}]}],
        }
        found.append(_object(*kind, _shared(dd, facts, names.router_name(name), "router"), spec=routers))
    return found


def _between_workers(dd: DisaggDeployment) -> list[Obj]:
    """Return the ports on which workers reach each other. The engine's own HTTP port is none."""
    ranges = [{"port": first} | ({"endPort": last} if last > first else {}) for first, last in peer_ports(dd)]
    return [{"protocol": "TCP", **ports} for ports in ({"port": KV_PORT}, *ranges)]


def _web() -> list[Obj]:
    """Return where the web and its proxy may be: everywhere but at the addresses of metadata
    services. Some networks do not count pods as addresses.
    """
    blocks = {"0.0.0.0/0": REFUSED_IPV4, "::/0": REFUSED_IPV6}
    return [
        *({"ipBlock": {"cidr": cidr, "except": list(refused)}} for cidr, refused in blocks.items()),
        {"namespaceSelector": {}},
    ]


def _worker_egress(dd: DisaggDeployment, facts: Facts) -> list[Obj]:
    # A policy applies to the port behind the DNS Service, and the DNS pods of OpenShift listen on
    # 5353.
    dns = {"ports": [{"protocol": protocol, "port": port} for port in (53, 5353) for protocol in ("UDP", "TCP")]}
    kv = {"to": [_from_component(dd.metadata.name, r) for r in ROLES], "ports": _between_workers(dd)}
    web: Obj = {"ports": [{"protocol": "TCP", "port": port} for port in facts.access.web_ports]}
    if facts.images.renderer >= NO_METADATA_SERVICES:
        web = {"to": _web()} | web
    return [dns, kv, *([web] if uses_hub(dd) else [])]


def _pool(dd: DisaggDeployment, facts: Facts, role: str) -> Obj:
    metadata = _shared(dd, facts, names.pool_name(dd.metadata.name, role), role)
    annotations = {DECLARED_ANNOTATION: facts.declared[role]} if role in facts.declared else {}
    if facts.runtime is not None:
        annotations[RUNTIME_ANNOTATION] = facts.runtime
    if annotations:
        metadata["annotations"] = annotations
    spec = {"deployment": dd.metadata.name, "role": role, "replicas": facts.replicas[role]}
    return _object(API_VERSION, "DisaggPool", metadata, spec=spec)


def _pool_children(dd: DisaggDeployment, facts: Facts, role: str) -> list[Obj]:
    name = names.pool_name(dd.metadata.name, role)
    owners = names.owned_by_pool(dd, role, facts.pool_uids[role])
    template, revision = pod_templates.worker_template(dd, role, facts.images)
    metadata = names.metadata(dd, name, role, owners)
    metadata["labels"] = metadata["labels"] | {LABEL_REVISION: revision}
    match = names.selector(dd.metadata.name, role)
    deployment: Obj = {
        "replicas": facts.replicas[role],
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": _progress_deadline_s(dd, role, facts),
        "selector": {"matchLabels": match},
        # New workers become ready before old ones are removed, so capacity never falls.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": template,
    }
    service: Obj = {
        "clusterIP": "None",
        "selector": match,
        "ports": [{"name": "http", "port": WORKER_PORT, "targetPort": WORKER_PORT, "protocol": "TCP"}],
    }
    budget = _budget(match, facts)
    return [
        _object("v1", "Service", names.metadata(dd, name, role, owners), spec=service),
        _object("apps/v1", "Deployment", metadata, spec=deployment),
        _object("policy/v1", "PodDisruptionBudget", names.metadata(dd, name, role, owners), spec=budget),
    ]


def _progress_deadline_s(dd: DisaggDeployment, role: str, facts: Facts) -> int:
    return progress_deadline_s(dd, role) if facts.images.renderer >= PATIENT_ROLLOUT else 1800


def _budget(match: Obj, facts: Facts) -> Obj:
    """Return the spec of a disruption budget."""
    unready = {"unhealthyPodEvictionPolicy": "AlwaysAllow"} if facts.images.renderer >= UNREADY_ARE_EVICTED else {}
    return {"maxUnavailable": 1, "selector": {"matchLabels": match}, **unready}


def _router(dd: DisaggDeployment, facts: Facts) -> list[Obj]:
    name, spec = names.router_name(dd.metadata.name), dd.spec.router
    match = names.selector(dd.metadata.name, "router")
    deployment: Obj = {
        "replicas": spec.replicas,
        "selector": {"matchLabels": match},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": pod_templates.router_template(dd, facts.images),
    }
    service: Obj = {
        "type": spec.service.type,
        "selector": match,
        "ports": [{"name": "http", "port": spec.service.port, "targetPort": ROUTER_PORT, "protocol": "TCP"}],
    }
    budget = _budget(match, facts)
    return [
        _object("apps/v1", "Deployment", _shared(dd, facts, name, "router"), spec=deployment),
        _object("v1", "Service", _shared(dd, facts, name, "router"), spec=service),
        _object("policy/v1", "PodDisruptionBudget", _shared(dd, facts, name, "router"), spec=budget),
    ]
