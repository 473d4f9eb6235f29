"""Pods own the NetworkPolicies that govern them, which stay until the last one has ended."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, Rolling, settled

from disagg_operator.controller.policy_owners import MOST_PODS, new_owners
from disagg_operator.kube.errors import Denied
from disagg_operator.kube.resources import Resource
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


def names(owners: list[Obj] | None) -> list[str]:
    """Return the pods among owner references, by name, in their order."""
    return [owner["name"] for owner in owners or [] if owner["kind"] == "Pod"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (policy("worker"), ["b", "a"]),
        (policy("router"), ["r"]),
        (policy("worker", {"kind": "Pod", "uid": "u-a", "name": "a"}), ["a", "b"]),
        (policy("worker", {"kind": "Pod", "uid": "u-z", "name": "z"}), ["z", "b", "a"]),
        (policy("worker", {"kind": "DisaggDeployment", "uid": "x"}, {"kind": "Pod", "uid": "c"}), ["b", "a"]),
        (policy("worker", *({"kind": "Pod", "uid": f"u-{n}", "name": n} for n in "ab")), []),
    ],
    ids=["workers", "routers", "one is known", "one is ending", "one has gone", "all are known"],
)
def test_a_policy_gets_the_pods_that_it_governs_and_that_stay(found: Obj, expected: list[str]) -> None:
    owners = new_owners(found, PODS)
    assert names(owners) == expected
    new = [owner for owner in owners or [] if owner not in found["metadata"]["ownerReferences"]]
    assert not any(owner["blockOwnerDeletion"] or "controller" in owner for owner in new)
    others = [owner for owner in found["metadata"]["ownerReferences"] if owner["kind"] != "Pod"]
    assert owners is None or owners[: len(others)] == others


def many(count: int, component: str, grace_s: int = 60, made: str = "2026-01-01T00:00:00Z") -> list[Obj]:
    out = [pod(f"{component}-{made}-{n:03}", component, creationTimestamp=made) for n in range(count)]
    return [{**one, "spec": {"terminationGracePeriodSeconds": grace_s}} for one in out]


LATER = "2026-01-01T01:00:00Z"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (many(80, "prefill", 600), many(80, "decode", 300)),
        (many(80, "decode"), many(80, "prefill")),
        (many(80, "prefill", made=LATER), many(80, "prefill")),
    ],
    ids=["who may drain longer", "streams end in decode", "who stays in a rollout"],
)
def test_of_too_many_pods_those_own_a_policy_that_end_last(first: list[Obj], second: list[Obj]) -> None:
    """Whatever their names are: "decode" comes before "prefill"."""
    found = names(new_owners(policy("worker"), [*second, *first]))
    assert len(found) == MOST_PODS
    assert found[:80] == [one["metadata"]["name"] for one in first]


def test_owners_that_have_gone_take_no_room_and_the_others_keep_theirs() -> None:
    old, new = many(MOST_PODS, "decode"), many(10, "decode", made=LATER)
    owners = new_owners(policy("worker"), old)
    assert owners is not None
    full = policy("worker", *owners)
    assert new_owners(full, [*old, *new]) is None
    found = names(new_owners(full, [*old[5:], *new]))
    assert len(found) == MOST_PODS
    assert found[:95] == [one["metadata"]["name"] for one in old[5:]]
    assert len(names(new_owners(full, new))) == 10


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


class Conflicts:
    """Others write to a policy in the moment before the operator does, some times."""

    def __init__(self, world: Rolling, times: int) -> None:
        self.asked, self._times, self._world = 0, times, world
        self._merge = world.kube.merge
        world.kube.merge = self.merge  # type: ignore[method-assign]

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        if resource.kind == "NetworkPolicy":
            self.asked += 1
            if self.asked <= self._times:
                live = self._world.kube.find("NetworkPolicy", name)
                self._world.kube.put({**live, "metadata": {**live["metadata"], "annotations": {"a": str(self.asked)}}})
        return await self._merge(resource, namespace, name, patch)


@pytest.mark.parametrize(("times", "asked"), [(2, 3), (1000, 3)])
async def test_a_conflict_is_settled_at_once_and_ends_no_run(times: int, asked: int) -> None:
    world = await settled()
    world.kube.remove("NetworkPolicy", "chat-workers")
    conflicts = Conflicts(world, times)
    again_s = await world.run()
    assert conflicts.asked == asked
    assert bool(owners_of(world, "chat-workers")) is (times == 2)
    assert times == 2 or (again_s is not None and again_s <= 5)
    conflicts._times = 0
    world.clock_s += 5
    await world.run()
    assert owners_of(world, "chat-workers")


async def test_a_policy_that_is_deleted_meanwhile_ends_no_run() -> None:
    world = await settled()
    world.kube.remove("NetworkPolicy", "chat-workers")
    merge = world.kube.merge

    async def gone(resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        if resource.kind == "NetworkPolicy":
            world.kube.remove("NetworkPolicy", name)
        return await merge(resource, namespace, name, patch)

    world.kube.merge = gone  # type: ignore[method-assign]
    await world.run()
    assert "chat-workers" not in world.kube.names("NetworkPolicy")
    world.kube.merge = merge  # type: ignore[method-assign]
    world.clock_s += 600
    await world.run()
    assert owners_of(world, "chat-workers")
