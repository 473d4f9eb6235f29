"""What a real API server refuses is in a condition with its path, and nothing of it is written."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import Any

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.operator.controller.real_world import RealWorld

from disagg_operator.api.namespace_policy import Policy
from disagg_operator.kube.cache import KEPT
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    DEPLOYMENT,
    OWNED,
    PERSISTENT_VOLUME_CLAIM,
    SECRET,
    SERVICE_ACCOUNT,
    name_of,
)
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

pytestmark = pytest.mark.apiserver

SPEC: dict[str, Any] = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}, "router": {"replicas": 1}}
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"


async def _refused(world: RealWorld, reason: str, path: str, name: str = "chat") -> str:
    """Check that a new resource is refused, and return the message."""
    accepted = await world.condition(name, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason), accepted
    assert accepted["message"].startswith(f"{path}: "), accepted["message"]
    assert (await world.condition(name, "Ready"))["reason"] == reason
    assert await world.made() == []
    return str(accepted["message"])


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}, "spec.decode.resources.requests"),
        (
            {"podTemplate": {"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "10GB"}}}]}}},
            "spec.decode.podTemplate.spec.containers[main].resources.limits.memory",
        ),
        ({"podTemplate": {"spec": {"nodeSelectr": {}}}}, "spec.decode.podTemplate.spec.nodeSelectr"),
        ({"podTemplate": {"spec": {"tolerations": "x"}}}, "spec.decode.podTemplate.spec.tolerations"),
    ],
)
async def test_of_a_new_resource_that_the_api_server_refuses_nothing_is_written(
    world: RealWorld, spec: dict[str, Any], path: str
) -> None:
    await world.create("chat", {**SPEC, "decode": spec})
    assert await world.run("chat") is None
    await _refused(world, "InvalidSpec", path)
    await world.replace("chat", {"decode": {}})
    await world.run("chat")
    assert (await world.condition("chat", "Accepted"))["status"] == "True"
    assert len(await world.made()) == 5


async def test_a_quota_is_told_and_judged_again(world: RealWorld) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "q"},
        "spec": {"hard": {"services": "1"}},
    }
    path = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
    await world.send("POST", path, quota)
    # As the controller would write it.
    used = {"status": {"hard": {"services": "1"}, "used": {"services": "1"}}}
    merge = "application/merge-patch+json"
    await world.send("PATCH", f"{path}/q/status", used, merge)

    async def counted() -> None:
        body = {"metadata": {"generateName": "s"}, "spec": {"ports": [{"port": 1}]}}
        services = f"/api/v1/namespaces/{world.namespace}/services"
        while "exceeded" not in str(await _answer(world, "POST", f"{services}?dryRun=All", body)):
            await asyncio.sleep(0.05)

    await asyncio.wait_for(counted(), 60)
    await world.create("chat", SPEC)
    assert await world.run("chat") is not None
    words = await _refused(world, "QuotaExceeded", "spec.prefill")
    assert 'spec.router.service: services "chat-router" is forbidden: exceeded quota: q' in words
    assert await _left(world) == []
    assert await world.run("chat") is not None
    assert await _left(world) == []


async def _left(world: RealWorld) -> list[str]:
    """Return what exists of the operator's objects."""
    secrets = [await world.kube.get(SECRET, world.namespace, "chat-cluster-key")]
    records = [await world.kube.get(CONFIG_MAP, world.namespace, "chat-accepted-spec")]
    lists = [await world.kube.list(kind, world.namespace, LABEL_DEPLOYMENT) for kind in OWNED]
    return [name_of(obj) for obj in itertools.chain(secrets, records, *lists) if obj is not None]


async def _answer(world: RealWorld, verb: str, path: str, body: dict[str, Any]) -> object:
    try:
        return await world.send(verb, path, body)
    except Exception as error:
        return error


async def test_an_admission_policy_is_told_and_judged_again(world: RealWorld) -> None:
    name = world.namespace
    rule = {
        "apiGroups": ["apps"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments"],
    }
    limits = {"resourceRules": [rule], "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
    checks = [{"expression": "!object.metadata.name.endsWith('-decode')", "message": "no decoders here"}]
    spec = {"failurePolicy": "Fail", "matchConstraints": limits, "validations": checks}
    await world.send("POST", POLICIES, {"metadata": {"name": name}, "spec": spec})
    binding = {"policyName": name, "validationActions": ["Deny"]}
    await world.send("POST", BINDINGS, {"metadata": {"name": name}, "spec": binding})
    try:

        async def in_force() -> None:
            labels = {"a": "b"}
            pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
            body = {"metadata": {"name": "x-decode"}, "spec": {"selector": {"matchLabels": labels}, "template": pod}}
            path = f"{DEPLOYMENT.path(world.namespace)}?dryRun=All"
            while "no decoders" not in str(await _answer(world, "POST", path, body)):
                await asyncio.sleep(0.05)

        await asyncio.wait_for(in_force(), 60)
        await world.create("chat", SPEC)
        assert await world.run("chat") is not None
        assert "no decoders here" in await _refused(world, "AdmissionDenied", "spec.decode")
    finally:
        await world.send("DELETE", f"{BINDINGS}/{name}", {})
        await world.send("DELETE", f"{POLICIES}/{name}", {})


async def test_a_foreign_workload_of_the_name_is_a_name_conflict(world: RealWorld) -> None:
    labels = {"a": "b"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
    await world.make(DEPLOYMENT, "chat-decode", spec={"selector": {"matchLabels": labels}, "template": pod})
    await world.create("chat", SPEC)
    assert await world.run("chat") is not None
    accepted = await world.condition("chat", "Accepted")
    assert (accepted["reason"], await world.made()) == ("NameConflict", ["Deployment/chat-decode"])


async def test_a_foreign_object_that_could_be_overwritten_is_a_name_conflict_and_stays_as_it_is(
    world: RealWorld,
) -> None:
    before = await world.make(SERVICE_ACCOUNT, "chat-worker")
    await world.create("chat", SPEC)
    assert await world.run("chat") is not None
    accepted = await world.condition("chat", "Accepted")
    assert (accepted["reason"], await world.made()) == ("NameConflict", [])
    assert await world.kube.get(SERVICE_ACCOUNT, world.namespace, "chat-worker") == before
    assert await _left(world) == []


async def test_a_new_resource_is_judged_without_a_read_of_each_object(world: RealWorld) -> None:
    await world.create("chat", SPEC)
    asked = Counter[str]()
    call = world.kube._call

    async def counted(verb: str, path: str, **more: Any) -> Obj:
        asked["dry run" if "dryRun" in (more.get("params") or {}) else verb] += 1
        return await call(verb, path, **more)

    world.kube._call = counted  # type: ignore[method-assign]
    await world.run("chat")
    assert asked["dry run"] < asked["PATCH"]
    assert asked["GET"] == len(KEPT)  # the world's own lists
    assert (await world.condition("chat", "Accepted"))["status"] == "True"
    before = asked.copy()
    await world.run("chat")
    assert asked - before == {"GET": len(KEPT)}


async def test_references_are_looked_up_before_anything_is_made(world: RealWorld) -> None:
    model = {"uri": "pvc://weights/llama"}
    keys = {"apiKeysSecretRef": {"name": "keys", "key": "all"}}
    pod = {"priorityClassName": "no-such-class", "runtimeClassName": "no-such-runtime"}
    await world.create("chat", SPEC | {"model": model, "router": keys, "decode": {"podTemplate": {"spec": pod}}})
    await world.run("chat")
    message = await _refused(world, "ReferenceMissing", "spec.model.uri")
    for words in (
        f"spec.model.uri: PersistentVolumeClaim {world.namespace}/weights does not exist",
        f"spec.router.apiKeysSecretRef: Secret {world.namespace}/keys does not exist",
        "spec.decode.podTemplate.spec.priorityClassName: PriorityClass no-such-class does not exist",
        "spec.decode.podTemplate.spec.runtimeClassName: RuntimeClass no-such-runtime does not exist",
    ):
        assert words in message
    claim = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    await world.make(PERSISTENT_VOLUME_CLAIM, "weights", spec=claim)
    await world.make(SECRET, "keys", stringData={"all": "k"})
    await world.replace("chat", {"decode": {}})
    world.clock += 5
    await world.references.look()
    assert (world.namespace, "chat") in world.woken
    await world.run("chat")
    assert (await world.condition("chat", "Accepted"))["status"] == "True"


async def test_a_granted_permission_is_carried_out(crd_server: ApiServer, crd_client: httpx.Client) -> None:
    allowed = Policy.model_validate({"namespaces": {"*": {"allow": ["HostNamespaces", "HostPath", "Privileged"]}}})
    world = await RealWorld(crd_server, allowed).open()
    try:
        context = {"allowPrivilegeEscalation": True}
        volume = {"name": "cache", "emptyDir": None, "hostPath": {"path": "/cache"}}
        pod = {"hostPID": True, "volumes": [volume], "containers": [{"name": "main", "securityContext": context}]}
        await world.create("chat", SPEC | {"decode": {"podTemplate": {"spec": pod}}})
        await world.run("chat")
        assert (await world.condition("chat", "Accepted"))["status"] == "True"
        made = (await world.templates("chat"))["decode"]["spec"]
        assert (made["hostPID"], made["containers"][0]["securityContext"]["allowPrivilegeEscalation"]) == (True, True)
    finally:
        await world.close()
