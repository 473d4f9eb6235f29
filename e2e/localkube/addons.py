"""The objects that the cluster holds from the start.

They are the Service of DNS, rights for DNS and Multus, and the CRD of network attachments.
"""

from __future__ import annotations

import json
from typing import Any

from localkube.control import api_answers, kubectl
from localkube.settings import DNS_PORT, DNS_SERVICE_IP, NODE_IP, Settings
from localkube.shell import wait_for

Manifest = dict[str, Any]  # a Kubernetes object as the API server takes it


def attachment_crd() -> Manifest:
    spec = {
        "type": "object",
        "description": "A network to attach pods to, beside the cluster's own.",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"config": {"type": "string", "description": "CNI configuration, as JSON."}},
            }
        },
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io",
            "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions",
                "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition",
                "shortNames": ["net-attach-def"],
            },
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": spec}}],
        },
    }


def _dns() -> list[Manifest]:
    """Return the objects that lead pods to CoreDNS, which runs on the node.

    They are a Service without a selector and an EndpointSlice for it.
    """
    labels = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
    protocols = (("dns", "UDP"), ("dns-tcp", "TCP"))
    ports = [{"name": name, "protocol": kind, "port": 53, "targetPort": DNS_PORT} for name, kind in protocols]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {"clusterIP": DNS_SERVICE_IP, "ports": ports},
    }
    slice_labels = {"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": "disagg-e2e"}
    slices = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-node", "namespace": "kube-system", "labels": slice_labels},
        "addressType": "IPv4",
        "ports": [{"name": name, "protocol": kind, "port": DNS_PORT} for name, kind in protocols],
        "endpoints": [{"addresses": [NODE_IP], "conditions": {"ready": True}}],
    }
    return [service, slices]


def rule(group: str, resources: list[str], verbs: list[str]) -> Manifest:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def multus_rules() -> list[Manifest]:
    return [
        rule("k8s.cni.cncf.io", ["*"], ["get", "list", "watch"]),
        rule("", ["pods", "pods/status"], ["get", "list", "watch", "update", "patch"]),
        rule("", ["events"], ["create", "patch", "update"]),
    ]


def cluster_role(name: str, rules: list[Manifest], subject: Manifest) -> list[Manifest]:
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": name},
            "rules": rules,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    ]


def _user(name: str) -> Manifest:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}


def manifests() -> list[Manifest]:
    look = ["list", "watch"]
    dns_rules = [
        rule("", ["endpoints", "services", "pods", "namespaces"], look),
        rule("discovery.k8s.io", ["endpointslices"], look),
    ]
    return [
        attachment_crd(),
        *cluster_role("disagg-e2e-coredns", dns_rules, _user("disagg:coredns")),
        *cluster_role("disagg-e2e-multus", multus_rules(), _user("disagg:multus")),
        *_dns(),
    ]


def as_list(items: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def apply(settings: Settings) -> None:
    text = as_list(manifests())

    def applied() -> bool:
        kubectl(settings, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        return api_answers(settings)

    # Right after it has started, the API server may still be creating `kube-system`.
    wait_for("the cluster's own objects to be applied", applied, timeout_s=60)
    crd = "crd/network-attachment-definitions.k8s.cni.cncf.io"
    kubectl(settings, "wait", "--for=condition=Established", "--timeout=30s", crd, timeout_s=45)


def default_account_exists(settings: Settings) -> bool:
    return bool(kubectl(settings, "get", "serviceaccount", "default", "-n", "default", "-o", "name", check=False))
