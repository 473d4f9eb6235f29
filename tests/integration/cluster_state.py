"""What a namespace holds, and the work of the controllers that a lone API server lacks."""

from __future__ import annotations

from typing import Any

from tests.integration.faulty_api import FaultyApi
from tests.integration.operator_process import Cluster, eventually

from disagg_operator.controller.drift import APPLIED_HASH
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DISAGG_DEPLOYMENT,
    OWNED,
    POD,
    SECRET,
    uid_of,
)
from disagg_operator.vocabulary import Obj

# What the API server chooses itself.
_CHOSEN = ("clusterIP", "clusterIPs")


async def objects(cluster: Cluster) -> list[Obj]:
    """Return all objects of the kinds that a resource may own."""
    kinds = (*OWNED, SECRET, CONFIG_MAP)
    return [obj for kind in kinds for obj in await cluster.kube.list(kind, cluster.namespace)]


async def uids(cluster: Cluster) -> dict[tuple[str, str], str]:
    """Return the uid of each object, except for the history of revisions, which grows."""
    found = [o for o in await objects(cluster) if o["kind"] != CONTROLLER_REVISION.kind]
    return {(o["kind"], o["metadata"]["name"]): uid_of(o) for o in found}


async def snapshot(cluster: Cluster) -> dict[Any, Any]:
    """Return the namespace without uids, versions, times and the key that is drawn by chance."""
    out: dict[Any, Any] = {}
    for obj in await objects(cluster):
        meta = obj["metadata"]
        annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k != APPLIED_HASH}
        spec = {k: v for k, v in (obj.get("spec") or {}).items() if k not in _CHOSEN}
        # Pods, which own the policies that govern them, have names that are drawn by chance.
        owners = [(o["kind"], o["name"]) for o in meta.get("ownerReferences") or [] if o["kind"] != POD.kind]
        out[(obj["kind"], meta["name"])] = (meta.get("labels"), annotations, owners, spec, obj.get("rules"))
    for obj in await cluster.kube.list(DISAGG_DEPLOYMENT, cluster.namespace):
        conditions = (obj.get("status") or {}).get("conditions") or []
        out[(obj["kind"], obj["metadata"]["name"])] = {c["type"]: (c["status"], c["reason"]) for c in conditions}
    return out


async def collect_garbage(cluster: Cluster) -> None:
    """Delete what has lost its owners, as the garbage collector would once all pods have ended."""
    while True:
        resources = await cluster.kube.list(DISAGG_DEPLOYMENT, cluster.namespace)
        found = await objects(cluster)
        alive = {uid_of(obj) for obj in (*resources, *found)}
        owners = {uid_of(o): {str(r["uid"]) for r in o["metadata"].get("ownerReferences") or []} for o in found}
        gone = [o for o in found if owners[uid_of(o)] and not owners[uid_of(o)] & alive]
        if not gone:
            return
        for obj in gone:
            await cluster.kube.delete(obj)


async def delete_resource(cluster: Cluster, name: str = "chat", policy: str = "Background") -> None:
    """Send the request of `kubectl delete --cascade`."""
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy}
    await cluster.raw("DELETE", DISAGG_DEPLOYMENT.path(cluster.namespace, name), body, "application/json")


async def delete_pods(cluster: Cluster) -> None:
    for pod in await cluster.kube.list(POD, cluster.namespace):
        await cluster.kube.delete(pod)


async def rests(api: FaultyApi) -> None:
    """Wait until the operator has listed everything twice more and written nothing since then.

    It needs a short resync interval.
    """

    async def quiet() -> bool:
        writes, resyncs = len(api.writes), api.resyncs

        async def listed() -> bool:
            return api.resyncs >= resyncs + 3

        await eventually("three full lists", listed)
        return len(api.writes) == writes

    await eventually("the operator rests", quiet, 120.0)
