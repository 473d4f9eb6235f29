"""Tests that failures of pods become conditions, on a real API server.

The kubelet's words are written into the status of real pods, as a kubelet writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, Pods, eventually, operator
from tests.ports import free_port

from disagg_operator.kube.resources import DEPLOYMENT, EVENT, POD

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

# What is knowable is in status within this time: it takes a second or two here, and at the next
# full list five minutes.
KNOWN_WITHIN_S = 60.0
LOG = "INFO: starting\nOSError: [Errno 98] Address already in use"


def ended(message: str, code: int = 1, reason: str = "Error") -> dict[str, Any]:
    times = {"startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:05Z"}
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, **times}}


def container(state: dict[str, Any], last: dict[str, Any] | None = None, restarts: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "main", "image": "x", "imageID": "x", "ready": False, "restartCount": restarts, "state": state,
    }  # fmt: skip
    return found if last is None else {**found, "lastState": last}


BACK_OFF = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}


class Rig:
    """One resource whose decode pool has a pod with a status of our choice."""

    def __init__(self, cluster: Cluster, pod: str) -> None:
        self._cluster = cluster
        self._pod = pod

    async def write(self, **status: Any) -> None:
        conditions = [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}]
        path = POD.path(self._cluster.namespace, self._pod) + "/status"
        body = {"status": {"phase": "Running", "conditions": conditions, **status}}
        await self._cluster.raw("PATCH", path, body, "application/merge-patch+json")

    async def event(self, reason: str, message: str) -> None:
        """Create an Event about the pod, as a kubelet does."""
        pod = await self._cluster.kube.get(POD, self._cluster.namespace, self._pod)
        assert pod is not None
        meta = {"name": f"{self._pod}.1", "namespace": self._cluster.namespace}
        about = {"kind": "Pod", "name": self._pod, "namespace": meta["namespace"], "uid": pod["metadata"]["uid"]}
        times = {"firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:01Z"}
        body = {"metadata": meta, "involvedObject": about, "type": "Warning", "reason": reason, "message": message}
        await self._cluster.raw("POST", EVENT.path(self._cluster.namespace), {**body, **times}, "application/json")

    async def reasons(self, *wanted: tuple[str, str], within_s: float = KNOWN_WITHIN_S) -> dict[str, Any]:
        """Wait until these conditions have these reasons, and return all conditions by type."""

        async def there() -> dict[str, Any]:
            resource = await self._cluster.resource()
            found = {c["type"]: c for c in resource["status"]["conditions"]}
            assert {c["observedGeneration"] for c in found.values()} == {resource["metadata"]["generation"]}
            return found if all(found[kind]["reason"] == reason for kind, reason in wanted) else {}

        found: dict[str, Any] = await eventually(f"{wanted}", there, within_s)
        return found


async def rig(cluster: Cluster, address: str = "127.0.0.40", port: int = 8000) -> Rig:
    await cluster.apply_resource(decode={"replicas": 1})
    # Prefill and router run, so that decode is the first cause that Ready names.
    pod = await cluster.run_pod("decode", 1, address, port)

    async def ready() -> bool:
        await cluster.deployments_are_ready()
        return bool((await cluster.condition("PrefillReady"))["status"] == "True")

    await eventually("prefill is ready", ready)
    path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/chat-decode/status"
    await cluster.raw(
        "PATCH", path, {"status": {"readyReplicas": 0, "availableReplicas": 0}}, "application/merge-patch+json"
    )
    found = Rig(cluster, pod)
    await found.write()
    await found.reasons(("DecodeReady", "PodsPending"), within_s=30.0)
    return found


async def test_what_the_kubelet_says_is_a_reason_within_seconds(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        pods = await rig(cluster)
        for status, reason, words in (
            ({"containerStatuses": [container(ended("boom"))]}, "ContainerExited", "boom"),
            ({"containerStatuses": [container(BACK_OFF, ended("boom"), 3)]}, "CrashLoop", "3 restarts"),
            ({"containerStatuses": [container(BACK_OFF, ended(LOG), 3)]}, "PortInUse", "Address already in use"),
            (
                {"containerStatuses": [container(BACK_OFF, ended("x", 137, "OOMKilled"), 4)]},
                "EngineOutOfMemory",
                "exited with 137",
            ),
            (
                {"containerStatuses": [container({"waiting": {"reason": "ErrImagePull", "message": "not found"}})]},
                "ImagePull",
                "not found",
            ),
            (
                {
                    "containerStatuses": [
                        container(
                            {
                                "waiting": {
                                    "reason": "CreateContainerConfigError",
                                    "message": "container has runAsNonRoot and image will run as root",
                                }
                            }
                        )
                    ]
                },
                "PodSecurityLevel",
                "spec.engine.podSecurityLevel",
            ),
            (
                {
                    "containerStatuses": [],
                    "initContainerStatuses": [container(ended("RuntimeError: NIXL is not available"))],
                },
                "MissingLibrary",
                "NIXL is not available",
            ),
        ):
            await pods.write(**status)
            found = await pods.reasons(("DecodeReady", reason), ("Ready", reason))
            assert words in found["DecodeReady"]["message"]
            assert (found["DecodeReady"]["status"], found["Ready"]["status"]) == ("False", "False")
        # A log of any length and content fits into a condition.
        log = "\x1b[31m" + "\u00e9\u202e\n" * 3000 + LOG
        await pods.write(initContainerStatuses=[], containerStatuses=[container(BACK_OFF, ended(log), 5)])
        found = await pods.reasons(("DecodeReady", "PortInUse"))
        assert "5 restarts" in found["DecodeReady"]["message"]
        assert found["DecodeReady"]["message"].endswith(LOG)
        assert "\x1b" not in found["DecodeReady"]["message"]


async def test_what_a_worker_says_of_itself_is_a_reason_within_seconds(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    port, answer = (
        free_port(),
        {"state": "starting", "problem": {"reason": "EngineHung", "message": "no token in 15 s"}},
    )

    async def info(_: web.Request) -> web.Response:
        return web.json_response(answer)

    # The autoscaler looks once an hour: it is not what finds the problem.
    async with (
        serving(web.get("/internal/v1/info", info), host="127.0.0.41", port=port),
        operator(server, tmp_path, cluster.namespace, DISAGG_SCRAPE_INTERVAL_S="300"),
    ):
        await cluster.apply_resource(decode={"replicas": 1})
        pod = await cluster.run_pod("decode", 1, "127.0.0.41", port)
        pods = Rig(cluster, pod)
        await pods.write()
        found = await pods.reasons(("DecodeReady", "EngineHung"), within_s=30.0)
        assert "no token in 15 s" in found["DecodeReady"]["message"]
        del answer["problem"]
        await pods.reasons(("DecodeReady", "PodsPending"))
        answer["problem"] = {"reason": "UnknownEngineVersion", "message": "vllm 9.9"}
        found = await pods.reasons(("DecodeReady", "UnknownEngineVersion"))
        assert found["DecodeReady"]["message"].endswith("vllm 9.9")


async def test_pools_of_two_engine_versions_are_a_reason_within_seconds(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    """The workers are ready, each by itself; only the routers see that none fits another."""

    def workers(prefill: str, decode: str) -> list[dict[str, str]]:
        both = {"prefill": f"vllm {prefill}", "decode": f"vllm {decode}"}
        more = {"state": "ready", "transport": "tcp", "interface": "eth0"}
        return [{"pod": role, "role": role, "engine": name, "compat": name, **more} for role, name in both.items()]

    port, pods = free_port(), Pods()
    pods.workers = workers("0.33.0", "0.33.0")
    await pods.start(["127.0.0.10"], port)
    try:
        async with operator(server, tmp_path, cluster.namespace):
            await cluster.apply_resource()
            await cluster.run_pod("router", 0, "127.0.0.10", port)

            async def is_told(reason: str) -> bool:
                await cluster.deployments_are_ready()
                return bool((await cluster.condition("KVTransferReady"))["reason"] == reason)

            await eventually("the pairs are healthy", lambda: is_told("PairsHealthy"))
            pods.workers, pods.pairs = workers("0.32.0", "0.33.0"), {"expected": 0, "healthy": 0}
            await eventually("the versions", lambda: is_told("EngineMismatch"), KNOWN_WITHIN_S)
            found = await cluster.condition("Ready")
            assert (found["status"], found["reason"]) == ("False", "EngineMismatch")
            assert "prefill runs vllm 0.32.0, decode runs vllm 0.33.0" in found["message"]
    finally:
        await pods.stop()


async def test_pods_that_pod_security_refuses_need_a_level(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    """The words are those of the real API server, for a pod that the namespace does not admit."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    await cluster.raw("PATCH", f"/api/v1/namespaces/{cluster.namespace}", label, "application/merge-patch+json")
    body = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": cluster.namespace},
        "spec": {"containers": [{"name": "main", "image": "x", "securityContext": {"runAsUser": 0}}]},
    }  # fmt: skip
    with pytest.raises(Exception, match="PodSecurity") as refusal:
        await cluster.raw("POST", POD.path(cluster.namespace), body, "application/json")
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource(decode={"replicas": 1})

        async def refused() -> bool:
            if await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode") is None:
                return False
            path = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/chat-decode/status"
            failure = {
                "type": "ReplicaFailure",
                "status": "True",
                "reason": "FailedCreate",
                "message": str(refusal.value),
            }
            await cluster.raw("PATCH", path, {"status": {"conditions": [failure]}}, "application/merge-patch+json")
            return True

        await eventually("the controller says so", refused)

        async def told() -> bool:
            return bool((await cluster.condition("DecodeReady"))["reason"] == "PodSecurityLevel")

        await eventually("the condition", told, KNOWN_WITHIN_S)
        message = (await cluster.condition("DecodeReady"))["message"]
        assert "need Pod Security Baseline" in message
        assert "spec.engine.podSecurityLevel" in message


@pytest.mark.parametrize(
    ("computed", "status", "reason"), [(10.0, "True", "PromptsTransferred"), (400.0, "False", "PrefillRepeated")]
)
async def test_decode_tells_whether_it_computes_prompts_again(
    server: ApiServer, cluster: Cluster, tmp_path: Path, computed: float, status: str, reason: str
) -> None:
    name = "disagg_worker_prompt_tokens_by_source_total"
    port, pods = free_port(), Pods()
    tokens = {"local_compute": 7.0, "external_kv_transfer": 3.0}
    pods.counters["127.0.0.43"] = lambda: {
        f'{name}{{source="local_cache_hit"}}': float("nan"),
        **{f'{name}{{source="{source}"}}': n for source, n in tokens.items()},
    }
    await pods.start(["127.0.0.43"], port)
    try:
        async with operator(server, tmp_path, cluster.namespace):
            await cluster.apply_resource(decode={"replicas": 1})
            await cluster.run_pod("decode", 1, "127.0.0.43", port)

            async def told() -> Any:
                return await cluster.condition("DisaggregationEffective")

            async def scraped() -> bool:
                return pods.scrapes["127.0.0.43"] > 2

            assert (await eventually("a status", told))["reason"] == "NoData"
            await eventually("the first counters are known", scraped)
            tokens["local_compute"] += computed
            tokens["external_kv_transfer"] += 600.0

            async def judged() -> bool:
                return bool((await told())["reason"] == reason)

            await eventually("a verdict", judged, KNOWN_WITHIN_S)
            found = await told()
            assert found["status"] == status
            assert ("60 %" in found["message"]) == (status == "False")
    finally:
        await pods.stop()


async def test_a_pod_without_a_node_says_why_within_seconds(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    words = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    async with operator(server, tmp_path, cluster.namespace):
        pods = await rig(cluster)
        await pods.write(phase="Pending", conditions=[{"type": "Ready", "status": "False"}, scheduled])
        reason = "InsufficientCapacity"
        found = await pods.reasons(("DecodeReady", reason), ("Ready", reason))
        assert words in found["DecodeReady"]["message"]
        assert found["DecodeReady"]["message"].endswith("(spec.decode)")


@pytest.mark.parametrize(
    ("event", "message", "reason", "field"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "extra" : secret "x" not found', "FailedMount",
         "(spec.decode.podTemplate.spec.volumes[extra])"),
        ("FailedCreatePodSandBox", "Failed to create pod sandbox: plugin type=\"multus\" failed (add): no IP addresses",
         "FailedAttachNetwork", "no IP addresses"),
    ],
)  # fmt: skip
async def test_a_pod_that_waits_for_a_volume_or_its_network_says_so_within_seconds(
    server: ApiServer, cluster: Cluster, tmp_path: Path, event: str, message: str, reason: str, field: str
) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        pods = await rig(cluster)
        creating = {"waiting": {"reason": "ContainerCreating"}}
        await pods.write(phase="Pending", containerStatuses=[container(creating)])
        await pods.event(event, message)
        found = await pods.reasons(("DecodeReady", reason), ("Ready", reason))
        assert message in found["DecodeReady"]["message"]
        assert field in found["DecodeReady"]["message"]
