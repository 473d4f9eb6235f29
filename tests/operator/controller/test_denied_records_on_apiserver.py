"""What the operator remembers of a resource is judged before anything is written.

It is the last accepted spec, in a ConfigMap, and the history, in ControllerRevisions. A policy of a
real API server that denies them refuses the edit with the object named, and what runs goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.operator.controller.real_world import RealWorld

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    NETWORK_POLICY,
    OWNED,
    SERVICE_ACCOUNT,
    Resource,
    name_of,
)
from disagg_operator.vocabulary import Obj

pytestmark = pytest.mark.apiserver
SPEC: Obj = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}, "router": {"replicas": 1}}
WORDS = "team-a keeps no such objects"
_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
RECORDS = [pytest.param(kind, id=kind.kind) for kind in (CONFIG_MAP, CONTROLLER_REVISION)]


@contextlib.asynccontextmanager
async def denied(world: RealWorld, kind: Resource) -> AsyncIterator[None]:
    """Let a policy deny all objects of a kind in the namespace until the block ends."""
    name, (group, _, version) = world.namespace, kind.api_version.rpartition("/")
    rule = {"apiGroups": [group], "apiVersions": [version], "operations": ["*"], "resources": [kind.plural]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": here},
        "validations": [{"expression": "false", "message": WORDS}],
    }
    await world.send("POST", _POLICIES, {"metadata": {"name": name}, "spec": spec})
    binding = {"policyName": name, "validationActions": ["Deny"]}
    await world.send("POST", _BINDINGS, {"metadata": {"name": name}, "spec": binding})
    await in_force(world, kind, is_so=True)
    yield
    await world.kube._call("DELETE", f"{_BINDINGS}/{name}")
    await world.kube._call("DELETE", f"{_POLICIES}/{name}")
    await in_force(world, kind, is_so=False)


async def in_force(world: RealWorld, kind: Resource, *, is_so: bool) -> None:
    probe = {"metadata": {"name": "probe"}, **({"revision": 1, "data": {}} if kind is CONTROLLER_REVISION else {})}

    async def until() -> None:
        while True:
            said = ""
            with contextlib.suppress(KubeError):
                try:
                    await world.send("POST", f"{kind.path(world.namespace)}?dryRun=All", probe)
                except KubeError as error:
                    said = str(error)
                    raise
            if (WORDS in said) is is_so:
                return
            await asyncio.sleep(0.05)

    await asyncio.wait_for(until(), 60)


async def assert_refused(world: RealWorld, kind: Resource) -> None:
    found = await world.condition("chat", "Accepted")
    assert (found["status"], found["reason"]) == ("False", "AdmissionDenied")
    assert WORDS in found["message"]
    assert f"({kind.kind} chat-" in found["message"]


@pytest.mark.parametrize("kind", RECORDS)
async def test_of_a_new_resource_whose_records_are_denied_nothing_is_written(world: RealWorld, kind: Resource) -> None:
    async with denied(world, kind):
        await world.create("chat", SPEC)
        assert await world.run("chat") == 5.0
        await assert_refused(world, kind)
        written = [o for k in (*OWNED, CONFIG_MAP) for o in await world.kube.list(k, world.namespace)]
        assert [name_of(o) for o in written if name_of(o).startswith("chat")] == []
    await world.run("chat")
    assert (await world.condition("chat", "Accepted"))["status"] == "True"
    assert len(await world.made()) == 5


@pytest.mark.parametrize("kind", RECORDS)
async def test_an_edit_whose_records_are_denied_changes_nothing_and_the_rest_is_looked_after(
    world: RealWorld, kind: Resource
) -> None:
    await world.create("chat", SPEC)
    await world.run("chat")
    before = await world.templates("chat")
    async with denied(world, kind):
        await world.edit("chat", {"decode": {"podTemplate": {"metadata": {"labels": {"a": "b"}}}}})
        lost = [await world.kube.get(k, world.namespace, "chat-router") for k in (NETWORK_POLICY, SERVICE_ACCOUNT)]
        for obj in lost:
            assert obj is not None
            await world.kube.delete(obj)
        assert await world.run("chat") == 5.0
        await assert_refused(world, kind)
        assert await world.templates("chat") == before
        assert await world.kube.get(NETWORK_POLICY, world.namespace, "chat-router") is not None
        assert await world.kube.get(SERVICE_ACCOUNT, world.namespace, "chat-router") is not None
    await world.run("chat")
    assert (await world.condition("chat", "Accepted"))["status"] == "True"
