"""Other clients, broken webhooks, deletions and namespaces that end, met by the operator process.

Each test names the faults of docs/reliability.md that it shows. There is no garbage collector and
no namespace controller beside the API server: the tests do their work.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.cluster_state import collect_garbage, delete_resource, objects, rests, snapshot, uids
from tests.integration.edited_resource import QUICK, edit, resting_operator, shown
from tests.integration.faulty_api import Asked, FaultyApi
from tests.integration.operator_process import Cluster, eventually, operator

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    EVENT,
    NETWORK_POLICY,
    OWNED,
    SECRET,
    uid_of,
)
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

MERGE = "application/merge-patch+json"


async def deployment(cluster: Cluster, name: str) -> Obj:
    found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, name)
    if found is None:
        raise KeyError(name)
    return found


async def change(cluster: Cluster, name: str, patch: Obj, manager: str = "kubectl-edit") -> None:
    """Change a Deployment as another client."""
    await cluster.raw("PATCH", DEPLOYMENT.path(cluster.namespace, name), patch, MERGE, {"fieldManager": manager})


async def test_f20_owned_fields_are_restored_foreign_ones_kept_and_a_contest_is_told(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:
        before = await snapshot(cluster)
        mine = {"metadata": {"annotations": {"example.com/note": "mine"}}, "spec": {"minReadySeconds": 7}}
        await change(cluster, "chat-decode", mine)
        # As `kubectl scale deployment` does; the pool is the one to scale.
        await change(cluster, "chat-decode", {"spec": {"replicas": 9}}, "kubectl")
        await cluster.scale("chat-prefill", 3)

        async def restored() -> bool:
            found = await deployment(cluster, "chat-decode")
            return found["spec"]["replicas"] == 2 and await cluster.replicas("prefill") == (3, 3)

        await eventually("one is restored and the other is scaled", restored)
        found = await deployment(cluster, "chat-decode")
        assert found["metadata"]["annotations"]["example.com/note"] == "mine"
        assert found["spec"]["minReadySeconds"] == 7
        await rests(api)

        # A client that insists is answered more and more slowly, and named.
        async def told() -> bool:
            if (await deployment(cluster, "chat-decode"))["spec"]["replicas"] == 2:
                await change(cluster, "chat-decode", {"spec": {"replicas": 9}}, "insistent")
            return any(e["reason"] == "ContestedObject" for e in await cluster.kube.list(EVENT, cluster.namespace))

        await eventually("the contest is told", told)
        events = [e for e in await cluster.kube.list(EVENT, cluster.namespace) if e["reason"] == "ContestedObject"]
        assert "Deployment chat-decode" in events[0]["message"]
        assert "insistent" in events[0]["message"]
        await eventually("it is restored in the end", restored)
        assert set(before) == set(await snapshot(cluster))
        assert await running.stop() == 0


async def test_f23_a_webhook_that_is_down_delays_the_work_and_admits_no_bad_resource(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    """The operator has no webhooks of its own; this one is somebody else's and fails closed."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    name = f"down-{cluster.namespace}"
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
    hook = {
        "name": "down.example.com", "clientConfig": {"url": "https://127.0.0.1:1/"}, "rules": [rule],
        "failurePolicy": "Fail", "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 1,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}},
    }  # fmt: skip
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name}, "webhooks": [hook],
    }  # fmt: skip
    await cluster.raw("POST", path, body, "application/json")
    try:
        async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
            await edit(cluster, "one")
            with pytest.raises(KubeError, match=r"spec\.decode\.replicas"):
                await edit(cluster, "bad", decode={"replicas": -1})

            async def told() -> bool:
                conditions = (await cluster.resource())["status"]["conditions"]
                return any(c["status"] == "False" and "failed calling webhook" in c["message"] for c in conditions)

            await eventually("that Deployments are refused is told in status", told)
            assert await cluster.kube.list(DEPLOYMENT, cluster.namespace) == []
            await cluster.kube._call("DELETE", f"{path}/{name}")
            await shown(cluster, "one")
            await rests(api)
            assert await running.stop() == 0
    finally:
        if any(w["metadata"]["name"] == name for w in (await cluster.kube._call("GET", path))["items"]):
            await cluster.kube._call("DELETE", f"{path}/{name}")


async def test_f25_a_resource_that_is_deleted_in_the_middle_of_a_rollout_leaves_nothing(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:

        async def deletes(asked: Asked) -> bool:
            if asked.writes and asked.path.endswith("/deployments/chat-prefill"):
                api.without_faults()
                await delete_resource(cluster)
            return True

        api.tells = deletes
        await edit(cluster, "two")

        async def gone() -> bool:
            return await cluster.kube.get(DISAGG_DEPLOYMENT, cluster.namespace, "chat") is None

        await eventually("the resource is gone at once: no finalizer delays it", gone)
        await rests(api)
        await collect_garbage(cluster)
        await rests(api)
        assert await objects(cluster) == []
        assert await running.stop() == 0


async def test_f25_a_resource_that_is_deleted_while_the_operator_is_down_is_no_work_for_the_next_one(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:
        assert await running.stop() == 0
    await delete_resource(cluster)
    assert await cluster.kube.get(DISAGG_DEPLOYMENT, cluster.namespace, "chat") is None
    writes = len(api.writes)
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as again:
        await rests(api)  # while its children still exist
        await collect_garbage(cluster)
        await rests(api)
        assert len(api.writes) == writes
        assert await objects(cluster) == []
        assert await again.stop() == 0


async def orphan(cluster: Cluster) -> None:
    """Do what the garbage collector does for --cascade=orphan: the children lose this owner."""
    resource = await cluster.resource()
    for obj in await objects(cluster):
        owners = obj["metadata"].get("ownerReferences") or []
        kept = [o for o in owners if o["uid"] != uid_of(resource)]
        if kept != owners:
            kind = next(k for k in (*OWNED, SECRET, CONFIG_MAP) if k.kind == obj["kind"])
            path = kind.path(cluster.namespace, obj["metadata"]["name"])
            await cluster.raw("PATCH", path, {"metadata": {"ownerReferences": kept or None}}, MERGE)
    path = DISAGG_DEPLOYMENT.path(cluster.namespace, "chat")
    await cluster.raw("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)


async def test_f25_orphans_serve_on_and_are_adopted_by_a_resource_of_the_same_name(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:
        before, pods, key = await uids(cluster), await cluster.templates(), await cluster.bearer_key()
        await delete_resource(cluster, policy="Orphan")
        await rests(api)
        await orphan(cluster)
        assert await cluster.kube.get(DISAGG_DEPLOYMENT, cluster.namespace, "chat") is None
        await rests(api)
        await collect_garbage(cluster)
        assert await uids(cluster) == before
        assert await cluster.templates() == pods

        # It is written otherwise than before: what is not wanted any more goes, adopted or not.
        policy = next(o for o in await cluster.kube.list(NETWORK_POLICY, cluster.namespace))
        resource = await edit(cluster, "one", security={"networkPolicy": False})

        async def adopted() -> bool:
            pools = await cluster.kube.list(DISAGG_POOL, cluster.namespace)
            secret = await cluster.kube.get(SECRET, cluster.namespace, "chat-cluster-key")
            owners = [o["metadata"]["ownerReferences"][0]["uid"] for o in (*pools, secret or {})]
            return owners == [uid_of(resource)] * 3 and (await cluster.condition("Accepted"))["status"] == "True"

        await eventually("its children are adopted", adopted)
        await rests(api)
        after = await uids(cluster)
        assert after == {k: v for k, v in before.items() if k[0] != policy["kind"]}
        assert await cluster.templates() == pods
        assert await cluster.bearer_key() == key
        await delete_resource(cluster)
        await collect_garbage(cluster)
        assert await objects(cluster) == []
        assert await running.stop() == 0


async def test_f26_nothing_is_created_again_in_a_namespace_that_ends(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    settings = QUICK | {"DISAGG_DEBOUNCE_S": "0.05"}
    async with operator(api.server, tmp_path, cluster.namespace, **settings) as running:
        await edit(cluster, "one")
        await shown(cluster, "one")
        await rests(api)
        await cluster.kube._call("DELETE", f"/api/v1/namespaces/{cluster.namespace}")
        start = len(api.asked)
        # The namespace controller deletes everything in any order; ours comes last.
        for obj in await objects(cluster):
            await cluster.kube.delete(obj)

        async def refused() -> bool:
            return any(a.status == 403 for a in api.asked[start:])

        await eventually("a creation is refused", refused)
        await rests(api)
        creations = [a for a in api.asked[start:] if a.writes and a.status == 403]
        assert len(creations) <= 6, [a.path for a in creations]
        resource = await cluster.resource()
        assert "finalizers" not in resource["metadata"]
        await delete_resource(cluster)
        await rests(api)
        assert await objects(cluster) == []
        assert await running.stop() == 0
