"""What is refused and what only warned of, and which spec is served meanwhile."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.controller.world import KEY, World, resource

from disagg_operator.api.namespace_policy import NamespacePolicy, Policy
from disagg_operator.api.violation import Violation
from disagg_operator.controller import judge

CORPUS = sorted((Path(__file__).resolve().parents[2] / "releases/0.1.0/corpus").glob("*.yaml"))
HOST = {"podTemplate": {"spec": {"hostNetwork": True}}}
ALLOWED = Policy(namespaces={"*": NamespacePolicy.model_validate({"allow": ["HostNamespaces"]})})
SECRET: dict[str, Any] = {
    "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hf", "namespace": "default"}, "data": {"token": "YQ=="},
}  # fmt: skip
HUB = {"uri": "hf://org/m", "authSecretRef": {"name": "hf"}}


def _workloads(world: World) -> dict[str, Any]:
    return {name: copy.deepcopy(world.kube.find("Deployment", name)["spec"]) for name in world.kube.names("Deployment")}


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
async def test_what_an_earlier_release_had_accepted_is_served_on(path: Path) -> None:
    """Several of them break rules of today, and none of what they refer to exists."""
    found = yaml.safe_load(path.read_text())
    found["metadata"] |= {"name": KEY[1], "namespace": KEY[0]}
    world = World()
    world.kube.remove("DisaggDeployment", KEY[1])
    accepted: dict[str, Any] = {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""}
    accepted |= {"observedGeneration": 1, "lastTransitionTime": world.now}
    world.kube.put({**found, "status": {"observedGeneration": 1, "conditions": [accepted]}})
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.kube.names("Deployment") == ["chat-decode", "chat-prefill", "chat-router"]
    # A later edit of another field is carried out, even if the status of then is lost.
    stored = copy.deepcopy(world.kube.find("DisaggDeployment", KEY[1]))
    stored["spec"]["router"] = {**stored["spec"].get("router", {}), "replicas": 3}
    del stored["status"]
    world.kube.put(stored)
    world.restart()
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.kube.find("Deployment", "chat-router")["spec"]["replicas"] == 3


async def test_a_field_that_a_new_policy_forbids_is_warned_of_until_it_is_written() -> None:
    world = World(prefill={"replicas": 1, **HOST})
    world.policy = ALLOWED
    world.restart()
    await world.settle()
    assert not [c for c in world.status()["conditions"] if c["type"] == "Warning"]
    world.policy = Policy()
    world.restart()
    await world.settle()
    warning = world.condition("Warning")
    assert (warning["status"], warning["reason"]) == ("True", "NotPermitted")
    assert "spec.prefill.podTemplate.spec.hostNetwork" in warning["message"]
    assert world.condition("Accepted")["status"] == "True"
    world.edit(decode={"replicas": 3})
    await world.settle()
    assert world.replicas("decode") == (3, 3)
    before = _workloads(world)
    world.edit(decode={"replicas": 5, **HOST})
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NotPermitted")
    assert accepted["message"].startswith("spec.decode.podTemplate.spec.hostNetwork: ")
    assert _workloads(world) == before
    world.edit(decode={"replicas": 4})
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    assert world.replicas("decode") == (4, 4)


async def test_an_old_fault_that_is_tolerated_hides_no_new_one() -> None:
    world = World()
    world.kube.remove("DisaggDeployment", KEY[1])
    old = resource(model={"uri": "file:///m", "revision": "main"})
    accepted: dict[str, Any] = {"type": "Accepted", "status": "True", "reason": "Valid", "message": ""}
    accepted |= {"observedGeneration": 1, "lastTransitionTime": world.now}
    world.kube.put({**old, "status": {"observedGeneration": 1, "conditions": [accepted]}})
    await world.settle()
    assert "spec.model.revision" in world.condition("Warning")["message"]
    world.edit(decode={"replicas": 2, **HOST})
    await world.settle()
    assert world.condition("Accepted")["message"].startswith("spec.decode.podTemplate.spec.hostNetwork: ")


async def test_while_a_spec_is_refused_the_last_accepted_one_is_served_repaired_and_scaled() -> None:
    world = World(decode={"autoscaling": {"minReplicas": 1, "maxReplicas": 4}})
    await world.settle()
    world.edit(prefill={"replicas": 1, "kvCacheSize": "0"})
    await world.settle()
    found = copy.deepcopy(world.kube.find("Deployment", "chat-prefill"))
    found["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    world.kube.put(found)
    world.decide("decode", 1, 3)
    await world.settle()
    assert world.kube.find("Deployment", "chat-prefill")["spec"]["template"]["spec"]["containers"][0]["image"] == "w:1"
    assert world.replicas("decode") == (3, 3)
    assert world.condition("Accepted")["message"].startswith("spec.prefill.kvCacheSize: must be above 0")
    meta = world.kube.find("DisaggDeployment", "chat")["metadata"]
    entry = world.live.of(KEY, meta["uid"])
    assert entry.plan is not None
    assert entry.plan.policies["decode"].max_replicas == 4
    assert {c["observedGeneration"] for c in world.status()["conditions"]} == {meta["generation"]}


async def test_the_last_accepted_spec_outlives_status_and_operator() -> None:
    world = World()
    await world.settle()
    stored = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
    del stored["status"]
    stored["spec"]["prefill"] = {"replicas": 1, "kvCacheSize": "0"}
    world.kube.put(stored)
    world.restart()
    before = _workloads(world)
    await world.settle()
    assert world.condition("Accepted")["status"] == "False"
    assert "what was accepted last is served" in world.condition("Accepted")["message"]
    assert _workloads(world) == before


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"prefill": HOST}, "NotPermitted", "spec.prefill.podTemplate.spec.hostNetwork: "),
        ({"model": HUB}, "ReferenceMissing", "spec.model.authSecretRef: Secret default/hf does not exist"),
        (
            {"model": {"uri": "pvc://weights/a"}},
            "ReferenceMissing",
            "spec.model.uri: PersistentVolumeClaim default/weights",
        ),
        (
            {"router": {"apiKeysSecretRef": {"name": "k"}}},
            "ReferenceMissing",
            "spec.router.apiKeysSecretRef: Secret default/k",
        ),
        (
            {"kvTransfer": {"network": {"attachmentRef": {"name": "fast"}}}},
            "NetworkAttachmentMissing",
            "spec.kvTransfer.network.attachmentRef: NetworkAttachmentDefinition default/fast does not exist",
        ),
    ],
)
async def test_of_a_refused_new_resource_nothing_is_written(spec: dict[str, Any], reason: str, words: str) -> None:
    world = World(**spec)
    await world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason)
    assert accepted["message"].startswith(words)
    assert [key[0] for key in world.kube.objects] == ["DisaggDeployment"]


async def test_what_the_api_server_refuses_of_a_new_resource_leaves_nothing_behind() -> None:
    world = World()
    world.kube.invalid_names.add("chat-decode")
    await world.settle()
    assert world.condition("Accepted")["reason"] == "InvalidSpec"
    assert [key[0] for key in world.kube.objects] == ["DisaggDeployment"]


async def test_a_foreign_workload_is_a_name_conflict_and_nothing_else_is_written() -> None:
    world = World()
    foreign = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat-prefill", "namespace": "default"},
    }
    world.kube.put({**foreign, "spec": {"x": 1}})
    assert await world.run() is not None
    assert world.condition("Accepted")["reason"] == "NameConflict"
    assert sorted(key[0] for key in world.kube.objects) == ["Deployment", "DisaggDeployment"]


async def test_a_secret_that_comes_goes_and_loses_its_key_wakes_the_resource() -> None:
    world = World(model=HUB)
    await world.settle()
    world.kube.put(SECRET)
    world.clock = 5.0
    await world.references.look()
    assert world.woken == [KEY]
    await world.settle()
    assert world.condition("Accepted")["status"] == "True"
    for gone, words in (({"data": {"other": "YQ=="}}, "has no key token"), (None, "does not exist")):
        world.woken.clear()
        world.clock += 5.0
        if gone is None:
            world.kube.remove("Secret", "hf")
        else:
            world.kube.put({**SECRET, **gone})
        await world.references.look()
        assert world.woken == [KEY]
        await world.settle()
        # What runs is not harmed.
        assert world.condition("Accepted")["status"] == "True"
        assert world.condition("Warning")["message"] == f"spec.model.authSecretRef: Secret default/hf {words}"
    world.woken.clear()
    world.clock += 5.0
    await world.references.look()
    assert world.woken == []
    world.kube.remove("DisaggDeployment", "chat")
    await world.run()
    world.kube.put(SECRET)
    await world.references.look()
    assert world.woken == []


def test_what_is_written_is_what_has_changed_or_was_right_before() -> None:
    wrong, other = Violation("spec.a[x].b", "w"), Violation("spec.c", "w")
    last = {"spec": {"a": [{"name": "x", "b": 1}], "c": 1}}
    now = {"spec": {"a": [{"name": "y", "b": 2}, {"name": "x", "b": 1}], "c": 2}}
    assert judge.written([wrong, other], now, (last, frozenset([wrong, other]))) == [other]
    assert judge.written([wrong, other], last, (last, frozenset([other]))) == [wrong]
    assert judge.told([wrong] * 7).endswith("; and 2 more")


async def test_what_is_forbidden_of_a_running_resource_holds_up_nothing_else() -> None:
    """A policy or a quota may be newer than the resource."""
    world = World(decode={"autoscaling": {"minReplicas": 1, "maxReplicas": 4}})
    await world.settle()
    world.kube.invalid_names.add("chat-router")
    for name in ("chat-router", "chat-prefill"):
        found = copy.deepcopy(world.kube.find("Deployment", name))
        found["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
        world.kube.put(found)
    world.decide("decode", 1, 3)
    await world.settle()
    assert world.replicas("decode") == (3, 3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], "spec.router" in accepted["message"]) == ("False", True)

    def image(name: str) -> str:
        return str(world.kube.find("Deployment", name)["spec"]["template"]["spec"]["containers"][0]["image"])

    assert (image("chat-prefill"), image("chat-router")) == ("w:1", "evil:1")
    world.kube.invalid_names.clear()
    await world.settle()
    assert (world.condition("Accepted")["status"], image("chat-router")) == ("True", "r:1")
