"""A kind that looks like a LeaderWorkerSet, whose controller does not run."""

from __future__ import annotations

from tests.integration.operator_process import Cluster, eventually

from disagg_operator.kube.resources import Resource

GROUPS = Resource("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
_APPLY, _FORCE = "application/apply-patch+yaml", {"fieldManager": "test", "force": "true"}


async def groups_are_served(cluster: Cluster) -> None:
    """Install a kind with a /scale like that of a LeaderWorkerSet."""
    plural, group = GROUPS.plural, "leaderworkerset.x-k8s.io"
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    paths = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
    version = {
        "name": "v1", "served": True, "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": free, "status": free}}},
        "subresources": {"status": {}, "scale": {**paths, "labelSelectorPath": ".status.hpaPodSelector"}},
    }  # fmt: skip
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group, "scope": "Namespaced", "versions": [version],
            "names": {"plural": plural, "singular": plural[:-1], "kind": GROUPS.kind},
        },
    }  # fmt: skip
    await cluster.raw(
        "PATCH", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.{group}", crd, _APPLY, _FORCE
    )

    async def served() -> bool:
        return await cluster.kube.has_api(GROUPS)

    await eventually("the kind is served", served)
