"""DisaggScalers against a real API server, with metrics pages of other engines over real sockets.

The targets are a real Deployment and a real StatefulSet, and a kind with a /scale of its own that
looks like a LeaderWorkerSet. No controller of theirs runs: the pods are made by the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.fakes.engine_fleet import EngineFleet
from tests.integration.apiserver import REPO, ApiServer
from tests.integration.chart_rights import chart_rights
from tests.integration.leader_worker_sets import GROUPS, groups_are_served
from tests.integration.operator_process import Cluster, Operator, eventually, operator
from tests.integration.test_prometheus import prometheus
from tests.ports import free_port

from disagg_operator.autoscaling.records import state_store
from disagg_operator.kube.resources import CONFIG_MAP, DEPLOYMENT, DISAGG_SCALER, POD, Resource
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

STATEFUL_SET = Resource("apps/v1", "StatefulSet", "statefulsets")
HPA = Resource("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
ROUTER = "127.0.0.11"
APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
FORCE = {"fieldManager": "test", "force": "true"}
# A prompt takes 0.05 s, a step 0.03 s: a pod prefills 20 requests a second, and decodes 10.6.
PROFILE = {
    "prefill": {"base": 0.001, "perToken": 0.00005},
    "decode": {"base": 0.029, "perSequence": 0.00001, "kvTokens": 400_000},
}


class Fleet:
    """Serves the pages of a fleet, whose pods are addresses of the loopback network."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.port, self.engine = cluster, free_port(), "vllm"
        self.engines, self.rate = EngineFleet(prefill_s=0.05), 0.0
        self.addresses: dict[str, tuple[str, str]] = {}
        self.scraped: set[str] = set()
        self._began_s = asyncio.get_running_loop().time()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._page)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        for role, address in (("prefill", "127.0.0.21"), ("decode", "127.0.0.31")):
            name = f"llama-{role}-0"
            self.engines.add(role, name)
            self.addresses[address] = (role, name)
            await web.TCPSite(self._runner, address, self.port).start()
            await self.pod(role, name, address)
        await web.TCPSite(self._runner, ROUTER, self.port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def pod(self, role: str, name: str, address: str) -> None:
        """Create a ready pod."""
        space = self.cluster.namespace
        meta = {"name": name, "namespace": space, "labels": {"app": "llama", "role": role}}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [{"name": "a", "image": "x"}]},
        }
        await self.cluster.raw("POST", POD.path(space), pod, "application/json")
        status = {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}
        await self.cluster.raw("PATCH", f"{POD.path(space, name)}/status", {"status": status}, MERGE)

    async def _page(self, request: web.Request) -> web.Response:
        address = str(request.transport.get_extra_info("sockname")[0]) if request.transport else ""
        now_s = asyncio.get_running_loop().time()
        self.engines.advance(now_s - self._began_s, self.rate, step_s=0.05)
        self._began_s = now_s
        self.scraped.add(address)
        if address == ROUTER:
            return web.Response(text=self.engines.router_page())
        return web.Response(text=self.engines.page(self.engine, *self.addresses[address]))


@pytest.fixture
async def fleet(cluster: Cluster) -> AsyncIterator[Fleet]:
    found = Fleet(cluster)
    await found.start()
    yield found
    await found.stop()


async def make(cluster: Cluster, resource: Resource, name: str, role: str, **meta: Any) -> Obj:
    """Create a target with one replica."""
    labels = {"app": "llama", "role": role}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "x"}]}}
    spec: Obj = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    if resource is STATEFUL_SET:
        spec["serviceName"] = name
    obj = {
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": {"name": name, "namespace": cluster.namespace, **meta}, "spec": spec,
    }  # fmt: skip
    made = await cluster.raw("PATCH", resource.path(cluster.namespace, name), obj, APPLY, FORCE)
    if resource is GROUPS:
        status = {"status": {"replicas": 1, "hpaPodSelector": f"app=llama,role={role}"}}
        await cluster.raw("PATCH", f"{resource.path(cluster.namespace, name)}/status", status, MERGE)
    return made


async def both(cluster: Cluster) -> None:
    await make(cluster, DEPLOYMENT, "llama-prefill", "prefill")
    await make(cluster, STATEFUL_SET, "llama-decode", "decode")


def scaler(fleet: Fleet, mode: str, name: str = "llama", **spec: Any) -> Obj:
    pools: Obj = {
        "prefill": {"scaleTargetRef": {"name": "llama-prefill"}, "maxReplicas": 8},
        "decode": {"scaleTargetRef": {"kind": "StatefulSet", "name": "llama-decode"}, "maxReplicas": 8},
    }
    meta = {"name": name, "namespace": fleet.cluster.namespace}
    base: Obj = {"mode": mode, "metrics": {"engine": fleet.engine, "port": fleet.port}, "scaling": {"profile": PROFILE}}
    return {
        "apiVersion": DISAGG_SCALER.api_version, "kind": DISAGG_SCALER.kind, "metadata": meta,
        "spec": base | pools | spec,
    }  # fmt: skip


async def apply(cluster: Cluster, obj: Obj) -> Obj:
    params = {**FORCE, "fieldValidation": "Strict"}
    return await cluster.raw(
        "PATCH", DISAGG_SCALER.path(cluster.namespace, obj["metadata"]["name"]), obj, APPLY, params
    )


async def status(cluster: Cluster, name: str = "llama") -> Obj:
    found = await cluster.kube.get(DISAGG_SCALER, cluster.namespace, name)
    if found is None:
        raise KeyError(name)
    return dict(found["status"])


async def condition(cluster: Cluster, kind: str, name: str = "llama") -> Obj:
    return next(c for c in (await status(cluster, name))["conditions"] if c["type"] == kind)


async def is_true(cluster: Cluster, kind: str, reason: str, value: str = "True") -> None:
    async def holds() -> bool:
        found = await condition(cluster, kind)
        return (found["status"], found["reason"]) == (value, reason)

    await eventually(f"{kind} is {value}: {reason}", holds)


async def replicas(cluster: Cluster, resource: Resource, name: str) -> int:
    found = await cluster.kube.get(resource, cluster.namespace, name)
    assert found is not None
    return int(found["spec"]["replicas"])


def running(server: ApiServer, folder: Path, cluster: Cluster, **settings: str) -> Any:
    values = {"DISAGG_SCALER_INTERVAL_S": "0.4", **settings}
    return operator(server, folder, cluster.namespace, **values)


async def test_a_shadow_recommends_and_an_active_one_scales(
    server: ApiServer, cluster: Cluster, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.rate = 60.0
    await both(cluster)
    await apply(cluster, scaler(fleet, "Shadow"))
    async with running(server, tmp_path, cluster) as process:
        await is_true(cluster, "Ready", "Recommending")

        async def recommended() -> bool:
            pools = {p["name"]: p for p in (await status(cluster))["pools"]}
            assert pools["prefill"]["recommended"] >= 3, pools
            assert pools["decode"]["recommended"] >= 3, pools
            return True

        await eventually("more is recommended", recommended)
        assert await replicas(cluster, DEPLOYMENT, "llama-prefill") == 1
        found = await status(cluster)
        assert found["prefill"].startswith("1 -> ")
        last = found["pools"][0]["lastDecision"]
        assert last["dryRun"] is True
        assert last["numbers"]["demand"] > 1
        assert (await condition(cluster, "AbleToScale"))["reason"] == "TargetsFree"
        async with httpx.AsyncClient(trust_env=False) as http:
            page = (await http.get(f"http://127.0.0.1:{process.port}/metrics")).text
        assert 'disagg_autoscaler_wanted_replicas{disagg_deployment="scaler/llama"' in page

        await apply(cluster, scaler(fleet, "Active"))
        await is_true(cluster, "Ready", "Scaling")

        async def scaled() -> bool:
            sizes = (
                await replicas(cluster, DEPLOYMENT, "llama-prefill"),
                await replicas(cluster, STATEFUL_SET, "llama-decode"),
            )
            return min(sizes) >= 3

        await eventually("both targets are scaled", scaled)
        await cluster.event("ScaledUp", fields="involvedObject.kind=DisaggScaler")
        await explained(server, process, cluster)
        await objectives_that_cannot_be_met_are_told(cluster, fleet)
        await the_series_of_disagg_are_read_too(cluster, fleet)
        assert await process.stop() == 0
    name = state_store.config_map_name("llama", DISAGG_SCALER)
    assert await cluster.kube.get(CONFIG_MAP, cluster.namespace, name) is not None


async def objectives_that_cannot_be_met_are_told(cluster: Cluster, fleet: Fleet) -> None:
    await apply(cluster, scaler(fleet, "Active", objectives={"tpotSeconds": {"p99": 0.001}}))
    await is_true(cluster, "ObjectivesFeasible", "ObjectivesInfeasible", "False")
    assert "decode: 0.001 s per token can't be met" in (await condition(cluster, "ObjectivesFeasible"))["message"]
    await is_true(cluster, "Ready", "Scaling")  # for what can be met
    await cluster.event("ObjectivesInfeasible", fields="involvedObject.kind=DisaggScaler")


async def the_series_of_disagg_are_read_too(cluster: Cluster, fleet: Fleet) -> None:
    fleet.engine = "builtin"
    await fleet.pod("router", "router-0", ROUTER)
    routers = {"matchLabels": {"role": "router"}}
    metrics = {"engine": "builtin", "port": fleet.port, "routers": routers, "routerPort": fleet.port}
    await apply(cluster, scaler(fleet, "Shadow", name="ours", metrics=metrics))

    async def recommending() -> bool:
        return bool((await condition(cluster, "Ready", "ours"))["reason"] == "Recommending")

    await eventually("the metrics of disagg are read", recommending)


async def explained(server: ApiServer, process: Operator, cluster: Cluster) -> None:
    """Read the records of a scaler as `disagg explain` does, and print them."""
    async with httpx.AsyncClient(trust_env=False) as http:
        url = f"http://127.0.0.1:{process.port}/decisions/{cluster.namespace}/scaler_llama"
        text = (await http.get(url)).text
    assert json.loads(text.splitlines()[0])["begin"] is True
    path = process.log.with_suffix(".jsonl")
    path.write_text(text)
    code = "import sys; from disagg_operator.cli.entry import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": f"{REPO}/operator:{REPO}/worker", "KUBECONFIG": str(server.kubeconfig)}
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, "explain", str(path), env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await done.communicate()
    assert done.returncode == 0
    assert "workers of work expected" in out.decode()


async def test_targets_that_others_set_are_missing_or_at_zero_say_so(
    server: ApiServer, cluster: Cluster, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.rate = 60.0
    async with running(server, tmp_path, cluster):
        await whoever_else_sets_a_target_is_named_and_nothing_is_written(cluster, fleet)
        await targets_that_are_missing_or_at_zero_say_so(cluster, fleet)


async def whoever_else_sets_a_target_is_named_and_nothing_is_written(cluster: Cluster, fleet: Fleet) -> None:
    await both(cluster)
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama-prefill"}
    hpa = {
        "apiVersion": HPA.api_version, "kind": HPA.kind, "metadata": {"name": "own", "namespace": cluster.namespace},
        "spec": {"scaleTargetRef": ref, "minReplicas": 1, "maxReplicas": 3},
    }  # fmt: skip
    await cluster.raw("PATCH", HPA.path(cluster.namespace, "own"), hpa, APPLY, FORCE)
    await apply(cluster, scaler(fleet, "Active"))
    await is_true(cluster, "Ready", "TargetOwned", "False")
    message = (await condition(cluster, "Ready"))["message"]
    assert "prefill is set by HorizontalPodAutoscaler own" in message

    async def recommended() -> bool:
        pools = {p["name"]: p for p in (await status(cluster))["pools"]}
        return bool(pools["decode"]["recommended"] >= 3)

    await eventually("it recommends all the same", recommended)
    assert await replicas(cluster, DEPLOYMENT, "llama-prefill") == 1
    assert await replicas(cluster, STATEFUL_SET, "llama-decode") == 1
    await apply(cluster, scaler(fleet, "Shadow"))
    await is_true(cluster, "Ready", "Recommending")
    assert (await condition(cluster, "AbleToScale"))["reason"] == "TargetOwned"
    await cluster.kube._call("DELETE", HPA.path(cluster.namespace, "own"))
    await apply(cluster, scaler(fleet, "Active"))
    await is_true(cluster, "Ready", "Scaling")
    await apply(cluster, scaler(fleet, "Active", name="younger"))

    async def refused() -> bool:
        found = await condition(cluster, "Ready", "younger")
        return "prefill is set by DisaggScaler llama" in found["message"]

    await eventually("the younger one of two is refused", refused)


async def targets_that_are_missing_or_at_zero_say_so(cluster: Cluster, fleet: Fleet) -> None:
    missing = {"scaleTargetRef": {"name": "other"}, "maxReplicas": 8}
    await apply(cluster, scaler(fleet, "Active", prefill=missing))
    await is_true(cluster, "Ready", "TargetNotFound", "False")
    target = {"apiVersion": "v1", "kind": "Service", "name": "llama-prefill"}
    pool = {"scaleTargetRef": target, "maxReplicas": 8}
    await apply(cluster, scaler(fleet, "Active", prefill=pool))
    await is_true(cluster, "AbleToScale", "NotScalable", "False")
    await apply(cluster, scaler(fleet, "Active"))
    parent = {"apiVersion": "x.dev/v1", "kind": "Graph", "name": "g", "uid": "1", "controller": True}
    await make(cluster, DEPLOYMENT, "llama-prefill", "prefill", ownerReferences=[parent])
    await is_true(cluster, "Ready", "TargetOwned", "False")
    assert "prefill is set by Graph g" in (await condition(cluster, "Ready"))["message"]
    path = f"{STATEFUL_SET.path(cluster.namespace, 'llama-decode')}/scale"
    await cluster.raw("PATCH", path, {"spec": {"replicas": 0}}, MERGE)
    await is_true(cluster, "ScalingActive", "ScaledToZero", "False")
    assert await replicas(cluster, STATEFUL_SET, "llama-decode") == 0


async def test_the_scaler_alone_scales_groups_with_the_rights_of_its_chart(
    server: ApiServer, cluster: Cluster, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.rate = 60.0
    await groups_are_served(cluster)
    await make(cluster, GROUPS, "llama-prefill", "prefill")
    await make(cluster, GROUPS, "llama-decode", "decode")
    pools: dict[str, Any] = {
        role: {
            "scaleTargetRef": {"apiVersion": GROUPS.api_version, "kind": GROUPS.kind, "name": f"llama-{role}"},
            "maxReplicas": 8,
        }
        for role in ("prefill", "decode")
    }
    await apply(cluster, scaler(fleet, "Active", **pools))
    alone = ("scalerOnly=true", f"watchNamespaces={{{cluster.namespace}}}")
    limited = {"KUBECONFIG": str(server.limited_kubeconfig), "DISAGG_SCALER_ONLY": "true"}
    async with chart_rights(cluster, *alone, "scaler.targets=null"), running(server, tmp_path, cluster, **limited):
        await is_true(cluster, "AbleToScale", "RightMissing", "False")
        assert "scaler.targets" in (await condition(cluster, "Ready"))["message"]
    async with chart_rights(cluster, *alone), running(server, tmp_path, cluster, **limited) as process:
        await is_true(cluster, "Ready", "Scaling")

        async def scaled() -> bool:
            sizes = [await replicas(cluster, GROUPS, f"llama-{role}") for role in ("prefill", "decode")]
            return min(sizes) >= 3

        await eventually("both groups are scaled", scaled)
        async with httpx.AsyncClient(trust_env=False) as http:
            healthy = await http.get(f"http://127.0.0.1:{process.port}/healthz")
        assert healthy.status_code == 200
        assert await process.stop() == 0
    assert "Traceback" not in process.log.read_text()
    name = state_store.config_map_name("llama", DISAGG_SCALER)
    assert await cluster.kube.get(CONFIG_MAP, cluster.namespace, name) is not None


async def test_metrics_come_from_a_prometheus_too(
    server: ApiServer, cluster: Cluster, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.rate = 60.0
    await both(cluster)
    targets = {
        f"{address}:{fleet.port}": {"namespace": cluster.namespace, "pod": pod}
        for address, (_, pod) in fleet.addresses.items()
    }
    async with prometheus(tmp_path, targets) as url, running(server, tmp_path, cluster):
        await apply(cluster, scaler(fleet, "Active", observability={"prometheus": {"url": url}}))

        async def scaled() -> bool:
            return await replicas(cluster, DEPLOYMENT, "llama-prefill") >= 3

        await eventually("the target is scaled", scaled)
