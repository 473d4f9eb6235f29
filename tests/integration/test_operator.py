"""Tests of the operator process against a real API server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.apiserver import LIMITED_USER, ApiServer
from tests.integration.chart_rights import chart_rights
from tests.integration.operator_process import Cluster, Pods, eventually, operator
from tests.ports import free_port

from disagg_operator.autoscaling.records import decision_records
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_POOL,
    NETWORK_POLICY,
    OWNED,
    POD,
)
from disagg_wire.cluster_key import bearer_of

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


def decisions(resource: dict[str, Any]) -> dict[str, Any]:
    return {p["name"]: p.get("lastDecision") for p in resource["status"]["pools"]}


async def accepted(cluster: Cluster) -> bool:
    condition = await cluster.condition("Accepted")
    assert condition["status"] == "True", condition["message"]
    return True


async def settled(cluster: Cluster, running: Any) -> float:
    """Wait until the operator has stopped writing for a while, and return its number of writes."""
    last, same = -1.0, 0

    async def still() -> bool:
        nonlocal last, same
        now = await running.metric("disagg_operator_api_writes_total")
        same = same + 1 if now == last else 0
        last = now
        return same >= 15 and await running.metric("disagg_operator_reconcile_seconds_count") > 0

    await eventually("the operator rests", still)
    return last


async def test_a_resource_becomes_children_that_it_owns(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    async with operator(server, tmp_path, cluster.namespace) as running:
        resource = await cluster.apply_resource()
        await eventually("accepted", lambda: accepted(cluster))
        pools = {p["metadata"]["name"]: p for p in await cluster.kube.list(DISAGG_POOL, cluster.namespace)}
        uids = {resource["metadata"]["uid"], *(p["metadata"]["uid"] for p in pools.values())}
        children = [o for kind in OWNED for o in await cluster.kube.list(kind, cluster.namespace)]
        ours = [o for o in children if o["metadata"].get("labels", {}).get("disagg.dev/deployment") == "chat"]
        assert {o["kind"] for o in ours} >= {
            "Deployment",
            "Service",
            "DisaggPool",
            "Role",
            "RoleBinding",
            "NetworkPolicy",
        }
        for child in ours:
            reference = child["metadata"]["ownerReferences"][0]
            assert reference["uid"] in uids
            assert reference["controller"] is True
            managers = {m["manager"] for m in child["metadata"]["managedFields"]}
            assert managers == {"disagg-operator"}, child["metadata"]["name"]
        assert await cluster.replicas("decode") == (2, 2)
        stored = await cluster.resource()
        assert "finalizers" not in stored["metadata"]
        assert "annotations" not in stored["metadata"]
        assert await running.stop() == 0


async def test_edits_reach_children_and_unwanted_ones_are_pruned(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource()
        await eventually("accepted", lambda: accepted(cluster))
        assert await cluster.kube.list(NETWORK_POLICY, cluster.namespace)
        env = [{"name": "HELLO", "value": "world"}]
        await cluster.apply_resource(engine={"env": env}, security={"networkPolicy": False}, decode={"replicas": 3})

        async def reached() -> bool:
            found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode")
            main = found["spec"]["template"]["spec"]["containers"][0] if found else {}
            return env[0] in main["env"] and await cluster.replicas("decode") == (3, 3)

        await eventually("the edit reaches the pods", reached)

        async def pruned() -> bool:
            return not await cluster.kube.list(NETWORK_POLICY, cluster.namespace)

        await eventually("the policy is gone", pruned)


async def test_idle_and_restarted_operators_write_nothing(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    network = {"network": {"attachmentRef": {"name": "fast"}}}
    await cluster.attach_network("fast")
    async with operator(server, tmp_path, cluster.namespace, DISAGG_RESYNC_INTERVAL_S="1") as running:
        await cluster.apply_resource(kvTransfer=network, decode={"autoscaling": {"maxReplicas": 3}})
        await eventually("accepted", lambda: accepted(cluster))
        before = await settled(cluster, running)
        # The rest is checked after several resyncs and scrape sweeps.
        syncs = await running.metric("disagg_operator_sweep_seconds_count")

        async def later() -> bool:
            return await running.metric("disagg_operator_sweep_seconds_count") >= syncs + 12

        await eventually("a dozen sweeps", later)
        assert await running.metric("disagg_operator_api_writes_total") == before
        assert await running.stop() == 0
    version = (await cluster.resource())["metadata"]["resourceVersion"]
    async with operator(server, tmp_path, cluster.namespace, DISAGG_RESYNC_INTERVAL_S="1") as again:
        assert await settled(cluster, again) == 0
        assert (await cluster.resource())["metadata"]["resourceVersion"] == version


async def test_scale_written_by_another_is_kept(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource()
        await eventually("accepted", lambda: accepted(cluster))
        await cluster.scale("chat-decode", 5)

        async def scaled() -> bool:
            owner = {p["name"]: p["replicaOwner"] for p in (await cluster.resource())["status"]["pools"]}
            return await cluster.replicas("decode") == (5, 5) and owner["decode"] == "kubectl-scale"

        await eventually("the Deployment follows the pool", scaled)
        await cluster.apply_resource(engine={"dtype": "float32"})

        async def rolled() -> bool:
            found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode")
            env = found["spec"]["template"]["spec"]["containers"][0]["env"] if found else []
            return {"name": "DISAGG_DTYPE", "value": "float32"} in env

        await eventually("the edit reaches the pods", rolled)
        assert await cluster.replicas("decode") == (5, 5)
        await cluster.apply_resource(decode={"replicas": 3})

        async def declared() -> bool:
            return await cluster.replicas("decode") == (3, 3)

        await eventually("an edited number wins", declared)


BAD = [
    ({"prefill": {"replicas": 1, "autoscaling": {"maxReplicas": 2}}}, "spec.prefill.autoscaling"),
    ({"prefill": {"autoscaling": {"minReplicas": 5, "maxReplicas": 2}}}, "spec.prefill.autoscaling.minReplicas"),
    ({"decode": {"replicas": -1}}, "spec.decode.replicas"),
    ({"decode": {"replicas": "two"}}, "spec.decode.replicas"),
    ({"prefill": {"replicas": 0}}, "both be 0 or both be above 0"),
    ({"model": {"uri": "http://example.com/x"}}, "spec.model.uri"),
    ({"model": {}}, "spec.model.uri"),
    ({"kvTransfer": {"transport": "rdma"}}, "spec.kvTransfer.network"),
    ({"kvTransfer": {"network": {}}}, "spec.kvTransfer.network.attachment"),
    ({"kvTransfer": {"transport": "carrier-pigeon"}}, "spec.kvTransfer.transport"),
    ({"engine": {"type": "tgi"}}, "spec.engine.type"),
    ({"router": {"replicas": 0}}, "spec.router.replicas"),
    ({"prefil": {}}, "spec.prefil"),
]


@pytest.mark.parametrize(("spec", "field"), BAD, ids=[str(i) for i in range(len(BAD))])
async def test_bad_resources_are_refused_by_the_api_server_by_name(
    cluster: Cluster, spec: dict[str, Any], field: str
) -> None:
    with pytest.raises(KubeError) as refused:
        await cluster.apply_resource(**spec)
    assert field in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        pytest.param({"restartPolicy": "Sometimes"}, "restartPolicy", id="a wrong value"),
        pytest.param({"tolerations": "perhaps"}, "tolerations", id="a wrong type"),
        pytest.param({"nodeSelectr": {}}, "nodeSelectr", id="an unknown field"),
    ],
)
async def test_what_the_schema_can_not_check_is_refused_in_status(
    server: ApiServer, cluster: Cluster, tmp_path: Path, wrong: dict[str, Any], field: str
) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource(prefill={"replicas": 1, "podTemplate": {"spec": wrong}})

        async def refused() -> bool:
            condition = await cluster.condition("Accepted")
            assert (condition["status"], condition["reason"]) == ("False", "InvalidSpec")
            return field in condition["message"]

        await eventually("refused in status", refused)
        await cluster.apply_resource()
        await eventually("and accepted once it is right", lambda: accepted(cluster))


async def _serve(cluster: Cluster, pods: Pods, port: int, decodes: int = 1) -> None:
    addresses = ["127.0.0.10", "127.0.0.20", *(f"127.0.0.{30 + i}" for i in range(decodes))]
    await pods.start(addresses, port)
    await cluster.run_pod("router", 0, "127.0.0.10", port)
    await cluster.run_pod("prefill", 0, "127.0.0.20", port)
    for i in range(decodes):
        await cluster.run_pod("decode", i, f"127.0.0.{30 + i}", port)


SCALED = {
    "autoscaling": {
        "minReplicas": 1,
        "maxReplicas": 4,
        "metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 3}},
    }
}


async def test_the_queue_drives_the_pool_up_and_down_and_silence_holds_it(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    pods, port = Pods(), free_port()
    async with operator(server, tmp_path, cluster.namespace) as running:
        await cluster.apply_resource(decode=SCALED)
        await eventually("accepted", lambda: accepted(cluster))
        await _serve(cluster, pods, port)
        try:

            async def ready() -> bool:
                await cluster.deployments_are_ready()  # as often as the operator still writes to them
                return bool((await cluster.condition("Ready"))["status"] == "True")

            await eventually("ready", ready)
            key = await cluster.bearer_key()
            assert pods.bearers == {f"Bearer {bearer_of(key)}"}

            pods.load["127.0.0.30"], pods.waiting["decode"] = 6, 5.0

            async def up() -> bool:
                return await cluster.replicas("decode") == (3, 3)

            await eventually("11 requests at 4 a worker make 3 workers", up)

            async def told() -> bool:
                decision = decisions(await cluster.resource())["decode"]
                return (decision["to"], decision["reason"], decision["target"]) == (3, "QueueAboveTarget", 4)

            await eventually("status tells the decision", told)
            assert "QueueDepth=" in await cluster.event("ScaledUp")

            pods.load["127.0.0.30"], pods.waiting["decode"] = 0, 0.0
            pods.silent = {"127.0.0.30"}

            async def blind() -> bool:
                return bool((await cluster.condition("ScalingActive"))["reason"] == "MetricsUnavailable")

            await eventually("silence is reported", blind)
            assert await cluster.replicas("decode") == (3, 3)
            pods.silent = set()

            async def down() -> bool:
                return await cluster.replicas("decode") == (1, 1)

            await eventually("an idle pool shrinks after its window", down)
            found = await cluster.kube.list(POD, cluster.namespace, "disagg.dev/pool=decode")
            cost = found[0]["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
            assert cost == "0"
            async with httpx.AsyncClient(trust_env=False) as http:
                text = (await http.get(f"http://127.0.0.1:{running.port}/decisions/{cluster.namespace}/chat")).text
        finally:
            await pods.stop()
    check_records(text)


def check_records(text: str) -> None:
    """Check the reasons in the records of the decisions, and that a replay decides the same."""
    steps = decision_records.steps_of(runs := decision_records.read(text.splitlines()))
    assert {"QueueAboveTarget", "MetricsUnavailable", "QueueBelowTarget"} <= {step.reasons["decode"] for step in steps}
    again = decision_records.replay(
        runs,
        lambda run: (
            decision_records.queue_policy(run.queue) if run.queue is not None else pytest.fail("another policy")
        ),
    )
    assert [(t.prefill, t.decode) for t in again] == [(s.targets.prefill, s.targets.decode) for s in steps]


async def test_health_is_served_and_sigterm_ends_clean(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    async with operator(server, tmp_path, cluster.namespace) as running:

        async def healthy() -> bool:
            async with httpx.AsyncClient(trust_env=False) as http:
                try:
                    return (await http.get(f"http://127.0.0.1:{running.port}/healthz")).status_code == 200
                except httpx.ConnectError:
                    return False

        await eventually("healthy", healthy)
        assert await asyncio.wait_for(running.stop(), 20) == 0
        assert "Traceback" not in running.log.read_text()


async def test_the_rights_that_the_chart_grants_are_enough(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    limited = replace(server, kubeconfig=server.limited_kubeconfig)
    lease = {"DISAGG_LEASE_NAMESPACE": cluster.namespace}
    async with chart_rights(cluster), operator(limited, tmp_path, "", **lease) as running:
        await cluster.attach_network("fast")
        rdma = {
            "transport": "rdma",
            "fallback": "Warn",
            "network": {"attachmentRef": {"name": "fast"}, "rdmaResource": {"name": "rdma/hca"}},
        }
        await cluster.apply_resource(kvTransfer=rdma)
        await eventually("accepted", lambda: accepted(cluster))
        await cluster.run_pod("decode", 0, "127.0.0.30", 1)
        await cluster.apply_resource(kvTransfer=rdma, decode={"replicas": 1}, security={"networkPolicy": False})

        async def reached() -> bool:
            policies = await cluster.kube.list(NETWORK_POLICY, cluster.namespace)
            return await cluster.replicas("decode") == (1, 1) and not policies

        await eventually("the edit reaches the children", reached)
        assert await running.stop() == 0
    assert server.forbidden(LIMITED_USER) == []
