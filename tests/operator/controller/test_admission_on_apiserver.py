"""What webhooks and limits of a real API server forbid is in a condition, with their words.

A webhook is a server of its own over TLS. Whatever time may cure is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.integration.webhook_server import Denial, Webhook
from tests.operator.controller.real_world import RealWorld

from disagg_operator.kube.errors import Denied, KubeError, Retry
from disagg_operator.kube.resources import DEPLOYMENT, POD
from disagg_operator.vocabulary import Obj

pytestmark = pytest.mark.apiserver

SPEC: dict[str, Any] = {"model": {"uri": "file:///models/m"}, "prefill": {}, "decode": {}, "router": {"replicas": 1}}
WORDS = "images of team-a come from our registry"
PROBE = {
    "metadata": {"name": "probe"},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "m", "image": "x"}]},
        },
    },
}


@pytest.fixture
async def webhook(world: RealWorld, tmp_path: Path) -> AsyncIterator[Webhook]:
    found = Webhook(world.kube, world.namespace, tmp_path)
    async with found.configured():
        yield found


async def in_force(world: RealWorld, is_so: Callable[[str], bool]) -> None:
    """Wait until the API server says of a Deployment what it says once it asks the webhook."""
    path = f"{DEPLOYMENT.path(world.namespace)}?dryRun=All"

    async def until() -> None:
        while True:
            try:
                await world.kube._call("POST", path, body=PROBE, attempts=1)
                said = ""
            except KubeError as error:
                said = str(error)
            if is_so(said):
                return
            await asyncio.sleep(0.05)

    await asyncio.wait_for(until(), 60)


def denying(suffix: str, *, dry_runs: bool = True, **status: Any) -> Callable[[Obj, bool], Denial | None]:
    """Return what denies Deployments whose name ends so, and the probe."""

    def deny(obj: Obj, dry_run: bool) -> Denial | None:
        name = obj["metadata"]["name"]
        if name == "probe" or (name.endswith(suffix) and (dry_runs or not dry_run)):
            return {"message": WORDS, **status}
        return None

    return deny


async def accepted(world: RealWorld) -> tuple[str, str, str]:
    found = await world.condition("chat", "Accepted")
    return found["status"], found["reason"], found["message"]


async def test_a_denial_is_told_within_one_reconcile_whatever_its_status(world: RealWorld, webhook: Webhook) -> None:
    webhook.deny = denying("-decode")
    async with webhook.listening():
        await in_force(world, lambda said: "denied the request" in said)
        await world.create("chat", SPEC)
        # A webhook may answer with any of them: those of the API server mean something else.
        for code in (400, 401, 403, 404, 409, 422, 429, 500, 503):
            words = f"{WORDS} ({code})"
            webhook.deny = denying("-decode", code=code, message=words)
            assert await world.run("chat") == 5.0
            denied = f'spec.decode: admission webhook "policy.example.com" denied the request: {words}'
            assert await accepted(world) == ("False", "AdmissionDenied", f"{denied} (Deployment chat-decode)")
            assert await world.made() == []
        webhook.deny = lambda obj, dry_run: None
        await world.run("chat")
        assert (await accepted(world))[0] == "True"
        assert len(await world.made()) == 5


async def test_the_causes_of_a_denial_name_the_fields(world: RealWorld, webhook: Webhook) -> None:
    image = {"field": "spec.template.spec.containers[0].image", "message": "not ours"}
    webhook.deny = denying("-decode", code=403, details={"causes": [image, {"message": "no field"}]})
    async with webhook.listening():
        await in_force(world, lambda said: "denied the request" in said)
        await world.create("chat", SPEC | {"engine": {"image": "foreign:1"}})
        await world.run("chat")
        assert (await accepted(world))[2].startswith("spec.engine.image: admission webhook")
        assert WORDS in (await accepted(world))[2]


async def test_of_a_running_resource_a_denied_edit_changes_nothing(world: RealWorld, webhook: Webhook) -> None:
    async with webhook.listening():
        await in_force(world, lambda said: webhook.asked > 0)
        await world.create("chat", SPEC)
        await world.run("chat")
        before = await world.templates("chat")
        webhook.deny = denying("-decode", code=403)
        await world.edit("chat", {"decode": {"podTemplate": {"metadata": {"labels": {"a": "b"}}}}})
        assert await world.run("chat") == 5.0
        status, reason, message = await accepted(world)
        assert (status, reason) == ("False", "AdmissionDenied")
        assert message.startswith("spec.decode.podTemplate: admission webhook")
        assert await world.templates("chat") == before


async def test_a_webhook_that_lets_dry_runs_pass_is_told_with_the_field(world: RealWorld, webhook: Webhook) -> None:
    webhook.deny = denying("-decode", dry_runs=False, code=403)
    async with webhook.listening():
        await in_force(world, lambda said: "denied the request" in said)
        await world.create("chat", SPEC)
        assert await world.run("chat") == 5.0
        status, reason, message = await accepted(world)
        assert (status, reason) == ("False", "AdmissionDenied")
        assert message.startswith('spec.decode: admission webhook "policy.example.com" denied the request')
        webhook.deny = lambda obj, dry_run: None
        await world.run("chat")
        assert (await accepted(world))[0] == "True"


async def test_a_webhook_that_is_away_is_no_refusal_and_cured_when_it_is_back(
    world: RealWorld, webhook: Webhook
) -> None:
    world.kube._attempts = 1
    await in_force(world, lambda said: "failed calling webhook" in said)
    await world.create("chat", SPEC)
    with pytest.raises(Retry, match="failed calling webhook") as raised:
        await world.run("chat")
    await world.reconciler.statuses.tell_failure((world.namespace, "chat"), "APIServerError", str(raised.value))
    assert "failed calling webhook" in (await world.condition("chat", "Reconciled"))["message"]
    assert (await accepted(world))[0] == "Unknown"
    assert await world.made() == []
    async with webhook.listening():
        await world.run("chat")
        assert (await accepted(world))[0] == "True"
        assert await world.condition("chat", "Reconciled") == {}


@pytest.mark.parametrize(
    ("kind", "name", "spec", "words"),
    [
        (
            "LimitRange",
            "limitranges",
            {"limits": [{"type": "Container", "max": {"memory": "64Mi"}}]},
            "maximum memory usage per Container is 64Mi",
        ),
        ("ResourceQuota", "resourcequotas", {"hard": {"requests.memory": "1Mi"}}, "exceeded quota: q"),
    ],
)
async def test_what_limits_say_of_the_pods_is_told_with_the_field(
    world: RealWorld, kind: str, name: str, spec: dict[str, Any], words: str
) -> None:
    """No controller runs: the test creates the pod as it would, and reports what it is told."""
    resources = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    await world.create("chat", SPEC | {"decode": {"resources": resources}})
    await world.run("chat")
    path = f"/api/v1/namespaces/{world.namespace}/{name}"
    await world.send("POST", path, {"apiVersion": "v1", "kind": kind, "metadata": {"name": "q"}, "spec": spec})
    if kind == "ResourceQuota":
        used = {"hard": spec["hard"], "used": dict.fromkeys(spec["hard"], "0")}
        await world.send("PATCH", f"{path}/q/status", {"status": used}, "application/merge-patch+json")
    template = (await world.templates("chat"))["decode"]
    said = await asyncio.wait_for(refusal_of_the_pod(world, template, words), 60)
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": said}
    status = {"status": {"conditions": [failure]}}
    where = DEPLOYMENT.path(world.namespace, "chat-decode") + "/status"
    await world.send("PATCH", where, status, "application/merge-patch+json")
    await world.run("chat")
    found = await world.condition("chat", "DecodeReady")
    assert (found["status"], found["reason"]) == ("False", "PodsRefused")
    assert words in found["message"]
    assert found["message"].endswith("(spec.decode)")


async def refusal_of_the_pod(world: RealWorld, template: Obj, words: str) -> str:
    """Return what the API server says of a pod, once it has taken in what limits it."""
    pod = {**template, "metadata": {**template["metadata"], "name": "chat-decode-x"}}
    while True:
        try:
            await world.send("POST", f"{POD.path(world.namespace)}?dryRun=All", pod)
        except Denied as error:
            if words in str(error):
                return str(error).split(": ", 1)[1].split(" ", 1)[1]
        await asyncio.sleep(0.05)
