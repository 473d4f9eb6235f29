"""What the garbage collector of a real Kubernetes leaves of a resource while its pods drain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.garbage_collector import collecting, until
from tests.operator.controller.real_world import RealWorld

from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Resource,
    name_of,
    uid_of,
)
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]
SPEC: Obj = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}, "router": {"replicas": 1}}


@pytest.fixture
async def world(crd_server: ApiServer, crd_client: httpx.Client, tmp_path: Path) -> AsyncIterator[RealWorld]:
    opened = await RealWorld(crd_server).open()
    async with collecting(crd_server, opened.kube, opened.namespace, tmp_path):
        yield opened
    await opened.close()


async def start_pods(world: RealWorld) -> None:
    """Make a pod of each Deployment, on a node, where it ends only when its kubelet says so."""
    for workload in await world.kube.list(DEPLOYMENT, world.namespace):
        template = workload["spec"]["template"]
        owner = {"apiVersion": "apps/v1", "kind": DEPLOYMENT.kind, "name": name_of(workload), "uid": uid_of(workload)}
        meta = {**template["metadata"], "name": f"{name_of(workload)}-x", "ownerReferences": [owner]}
        spec = {**template["spec"], "nodeName": "n"}
        await world.send("POST", POD.path(world.namespace), {"metadata": meta, "spec": spec})


async def names(world: RealWorld, kind: Resource) -> set[str]:
    return {name_of(obj) for obj in await world.kube.list(kind, world.namespace)}


async def delete(world: RealWorld, policy: str = "Background") -> None:
    path = DISAGG_DEPLOYMENT.path(world.namespace, "chat")
    await world.kube._call("DELETE", path, body={"propagationPolicy": policy})


async def end(world: RealWorld, name: str) -> None:
    """Do what the kubelet does when the last container of a pod has ended."""
    await world.kube._call("DELETE", POD.path(world.namespace, name), body={"gracePeriodSeconds": 0})


async def test_the_policies_stay_until_the_last_pod_that_they_govern_has_ended(world: RealWorld) -> None:
    await world.create("chat", SPEC)
    await world.run("chat")
    await start_pods(world)
    await world.run("chat")
    await delete(world)

    async def all_end() -> bool:
        pods = await world.kube.list(POD, world.namespace)
        return all(p["metadata"].get("deletionTimestamp") for p in pods) and not await names(world, SERVICE)

    await until(all_end)
    assert await names(world, NETWORK_POLICY) == {"chat-workers", "chat-router"}
    await end(world, "chat-prefill-x")
    await end(world, "chat-router-x")

    async def routers_policy_is_gone() -> bool:
        return await names(world, NETWORK_POLICY) == {"chat-workers"}

    await until(routers_policy_is_gone)
    # A new resource of the name takes over what the old one has left.
    await world.create("chat", SPEC)
    await world.run("chat")
    assert (await world.condition("chat", "Accepted"))["status"] == "True"
    await end(world, "chat-decode-x")
    await delete(world)

    async def nothing_is_left() -> bool:
        return not await names(world, NETWORK_POLICY) and not await names(world, POD)

    await until(nothing_is_left)
