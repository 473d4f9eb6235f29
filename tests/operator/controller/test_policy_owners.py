"""Pods own the NetworkPolicies that govern them, which stay until the last one has ended."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, Rolling

from disagg_operator.controller.policy_owners import MOST_PODS, missing_owners
from disagg_operator.kube.errors import Denied
from disagg_operator.vocabulary import Obj

POLICIES = ("chat-router", "chat-workers")


def policy(component: str, *owners: Obj) -> Obj:
    labels = {"app.kubernetes.io/component": component}
    return {"kind": "NetworkPolicy", "metadata": {"labels": labels, "ownerReferences": list(owners)}}


def pod(name: str, component: str, **meta: Any) -> Obj:
    labels = {"app.kubernetes.io/component": component}
    labels |= {} if component == "router" else {"disagg.dev/pool": component}
    return {"kind": "Pod", "metadata": {"name": name, "uid": f"u-{name}", "labels": labels, **meta}}


PODS = [pod("b", "decode"), pod("a", "prefill"), pod("r", "router"), pod("z", "decode", deletionTimestamp="now")]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (policy("worker"), ["a", "b"]),
        (policy("router"), ["r"]),
        (policy("worker", {"kind": "Pod", "uid": "u-a"}), ["b"]),
        (policy("worker", {"kind": "DisaggDeployment", "uid": "x"}, {"kind": "Pod", "uid": "c"}), ["a", "b"]),
        (policy("worker", *({"kind": "Pod", "uid": n} for n in range(MOST_PODS - 1))), ["a"]),
        (policy("worker", *({"kind": "Pod", "uid": n} for n in range(MOST_PODS))), []),
    ],
    ids=["workers", "routers", "one is known", "others are known", "nearly full", "full"],
)  # fmt: skip
def test_a_policy_lacks_the_pods_that_it_governs_and_that_stay(found: Obj, expected: list[str]) -> None:
    owners = missing_owners(found, PODS)
    assert [owner["name"] for owner in owners] == expected
    assert not any(owner["blockOwnerDeletion"] or "controller" in owner for owner in owners)


async def settled(**spec: Any) -> Rolling:
    world = Rolling(**spec)
    await world.roll()
    return world


def owners_of(world: Rolling, name: str) -> set[str]:
    references = world.kube.find("NetworkPolicy", name)["metadata"]["ownerReferences"]
    return {owner["name"] for owner in references if owner["kind"] == "Pod"}


async def test_the_policies_outlive_the_resource_until_the_last_pod_and_are_taken_over_by_the_next_one() -> None:
    world = await settled()
    assert owners_of(world, "chat-workers") == set(world.kube.names("Pod")) != set()
    before = len(world.kube.log)
    await world.run()
    assert len(world.kube.log) == before
    again = {**world.kube.find("DisaggDeployment", "chat")}
    again = {**again, "metadata": {"name": "chat", "namespace": "default"}, "status": {}}
    world.kube.remove("DisaggDeployment", "chat")
    assert world.kube.names("Deployment") == []
    assert world.kube.names("NetworkPolicy") == ["chat-workers"]
    world.restart()
    world.kube.put(again)
    await world.run()
    assert world.condition("Accepted")["status"] == "True"
    for name in world.kube.names("Pod"):
        world.kube.remove("Pod", name)
    assert world.kube.names("NetworkPolicy") == list(POLICIES)
    world.kube.remove("DisaggDeployment", "chat")
    assert world.kube.names("NetworkPolicy") == []


async def test_the_last_pod_takes_the_policy_of_a_deleted_resource_with_it() -> None:
    world = await settled()
    world.kube.remove("DisaggDeployment", "chat")
    *others, last = world.kube.names("Pod")
    for name in others:
        world.kube.remove("Pod", name)
    assert world.kube.names("NetworkPolicy") == ["chat-workers"]
    world.kube.remove("Pod", last)
    assert world.kube.objects == {}


async def test_whoever_forbids_it_stops_nothing_and_is_not_asked_all_the_time() -> None:
    world = await settled()
    asked = []

    def deny(verb: str, obj: Obj) -> None:
        if (verb, obj["kind"]) == ("merge", "NetworkPolicy"):
            asked.append(obj)
            raise Denied("somebody's policy")

    world.kube.on_write = deny
    world.edit(model=A_MODEL)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    asked.clear()
    for _ in range(5):
        await world.run()
    assert len(asked) <= 1
