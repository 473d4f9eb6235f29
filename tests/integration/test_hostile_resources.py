"""A resource that is absurd, or that nobody can write for now, harms no other resource."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, eventually, operator

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


async def deep(cluster: Cluster, name: str, depth: int) -> None:
    """Create a resource whose podTemplate is nested so deep, which Python can't write as JSON."""
    marker = "podTemplate-goes-here"
    meta = {"name": name, "namespace": cluster.namespace}
    spec = {
        "model": {"uri": "file:///m"}, "prefill": {"podTemplate": {"spec": marker}}, "decode": {},
    }  # fmt: skip
    body = {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "metadata": meta, "spec": spec}
    text = json.dumps(body).replace(f'"{marker}"', '{"a":' * depth + "{}" + "}" * depth)
    headers, path = {"Content-Type": "application/json"}, DISAGG_DEPLOYMENT.path(cluster.namespace)
    answer = await cluster.kube._connections.send("POST", path, content=text.encode(), headers=headers)
    assert answer.status == 201, answer.text[:500]


async def test_a_resource_that_is_nested_thousands_deep_is_refused_and_all_others_are_served(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    # At the start, as the first thing that a restarted operator reads, and while it watches.
    await deep(cluster, "before", 4000)
    async with operator(server, tmp_path, cluster.namespace) as running:
        await cluster.apply_resource("good")
        await eventually("accepted", lambda: cluster.accepted("good"), 90)
        await deep(cluster, "after", 400)
        await deep(cluster, "deepest", 4000)
        for name in ("before", "after", "deepest"):

            async def refused(name: str = name) -> bool:
                condition = await cluster.condition("Accepted", name)
                return condition["status"] == "False" and "spec.prefill.podTemplate" in condition["message"]

            await eventually(f"{name} is refused", refused, 90)
        await cluster.apply_resource("good", decode={"replicas": 3})

        async def scaled() -> bool:
            return await cluster.replicas("decode", "good") == (3, 3)

        await eventually("the good one is served on", scaled, 90)
        assert await running.stop() == 0
        assert "RecursionError" not in running.log.read_text()


async def test_a_webhook_that_fails_is_told_within_seconds_and_cured_when_it_is_gone(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    hooks = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}
    hook = {
        "name": "w.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
        "clientConfig": {"url": "https://127.0.0.1:1/x"}, "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}},
    }  # fmt: skip
    meta = {"name": cluster.namespace}
    await cluster.raw("POST", hooks, {"metadata": meta, "webhooks": [hook]}, "application/json")
    try:

        async def in_force() -> bool:
            labels = {"a": "b"}
            pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
            body = {"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": labels}, "template": pod}}
            try:
                await cluster.raw(
                    "POST", DEPLOYMENT.path(cluster.namespace), body, "application/json", {"dryRun": "All"}
                )
            except KubeError as error:
                return "failed calling webhook" in str(error)
            return False

        await eventually("the webhook is in force", in_force)
        async with operator(server, tmp_path, cluster.namespace):
            await cluster.apply_resource("calm", router={"replicas": 1})

            async def told() -> bool:
                found = {c["type"]: c for c in (await cluster.resource("calm"))["status"]["conditions"]}
                assert found["Reconciled"]["observedGeneration"] == 1
                return (
                    "failed calling webhook" in found["Reconciled"]["message"] and found["Ready"]["status"] == "False"
                )

            await eventually("the failure is in status", told)
            assert await cluster.kube.list(DEPLOYMENT, cluster.namespace) == []
            await cluster.raw("DELETE", f"{hooks}/{cluster.namespace}", {}, "application/json")
            await eventually("accepted", lambda: cluster.accepted("calm"))
            kinds = [c["type"] for c in (await cluster.resource("calm"))["status"]["conditions"]]
            assert "Reconciled" not in kinds
    finally:
        with contextlib.suppress(KubeError):
            await cluster.raw("DELETE", f"{hooks}/{cluster.namespace}", {}, "application/json")
