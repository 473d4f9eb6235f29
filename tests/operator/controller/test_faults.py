"""A reconciler among other writers, with clocks that are wrong, and after a deletion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.controller.world import World, resource

from disagg_operator.api.rollout import RolloutSpec
from disagg_operator.controller.drift import APPLIED_HASH
from disagg_operator.kube.errors import Conflict

DEADLINE_S = RolloutSpec().progress_deadline_seconds


def deployment_writes(world: World) -> int:
    return sum(kind == "Deployment" and name == "chat-decode" for _, kind, name in world.kube.log)


async def test_f20_a_client_that_insists_is_answered_once_a_minute_and_named() -> None:
    world = World()
    await world.settle()
    for second in range(0, 600, 5):
        world.clock_s = float(second)
        rivaled = copy.deepcopy(world.kube.find("Deployment", "chat-decode"))
        rivaled["spec"]["replicas"] = 9
        rivaled["metadata"]["managedFields"] = [{"manager": "insistent", "time": "2026-01-01T00:00:00Z"}]
        world.kube.put(rivaled)
        before = len(world.kube.log)
        again_s = await world.run()
        if world.replicas("decode")[1] == 9:
            assert again_s is not None
            assert 0 < again_s <= 60
            assert len(world.kube.log) == before
    # Pauses of 1, 2, 4, 8, 16, 32 and then 60 s, and the first write of all.
    assert 5 <= deployment_writes(world) <= 17
    told = [e for e in world.kube.events if e["reason"] == "ContestedObject"]
    assert len(told) == 1
    assert "Deployment chat-decode is changed again and again by insistent" in told[0]["message"]
    world.clock_s += 60
    await world.run()
    assert world.replicas("decode") == (2, 2)


async def test_f17_no_status_reaches_a_resource_that_took_the_name_in_between() -> None:
    world = World()
    await world.settle()
    world.edit(decode={"replicas": 3})

    def recreate(verb: str, obj: Any) -> None:
        if verb == "apply_status" and obj["kind"] == "DisaggDeployment":
            world.kube.on_write = lambda verb, obj: None
            world.kube.remove("DisaggDeployment", "chat")
            world.kube.put(resource())

    world.kube.on_write = recreate
    with pytest.raises(Conflict):
        await world.run()
    assert "status" not in world.kube.find("DisaggDeployment", "chat")
    await world.settle()
    assert world.replicas("decode") == (2, 2)


@pytest.mark.parametrize("now", ["2026-01-01T01:00:00Z", "2025-12-31T23:00:00Z", "1970-01-01T00:00:00Z"])
async def test_f22_a_wall_clock_that_jumps_changes_no_object(now: str) -> None:
    world, other = World(), World()
    await world.settle()
    await other.settle()
    other.now = now
    again_s = await other.run()
    assert again_s is not None  # no pod has ever been ready here: the deadline of the rollout
    assert 0 < again_s <= DEADLINE_S
    writes = other.kube.writes
    for each in (world, other):
        each.edit(decode={"replicas": 4})
        await each.settle()
    assert other.snapshot() == world.snapshot()
    assert other.kube.writes > writes
    quiet = other.kube.writes
    other.now = "2026-01-01T02:00:00Z"  # before the deadline of the rollout
    await other.run()
    assert other.kube.writes == quiet


def orphaned(world: World) -> None:
    """Delete the resource with --cascade=orphan."""
    gone = world.kube.objects.pop(("DisaggDeployment", "default", "chat"))
    for obj in world.kube.objects.values():
        owners = obj["metadata"].get("ownerReferences") or []
        kept = [o for o in owners if o["uid"] != gone["metadata"]["uid"]]
        if kept != owners:
            obj["metadata"].pop("ownerReferences")


async def test_f25_orphans_are_adopted_as_they_are_and_deleted_with_their_new_owner() -> None:
    world = World()
    await world.settle()
    before = world.snapshot()
    orphaned(world)
    world.restart()
    assert await world.run() is None
    world.kube.put(resource(security={"networkPolicy": False}))
    await world.settle()
    kept = {key for key in before if key[0] != "NetworkPolicy"}
    assert {key: world.snapshot()[key] for key in kept if key[0] == "Deployment"} == {
        key: before[key] for key in kept if key[0] == "Deployment"
    }
    assert world.kube.names("NetworkPolicy") == []
    world.kube.remove("DisaggDeployment", "chat")
    assert world.kube.objects == {}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"labels": {}}, id="of another label"),
        pytest.param({"annotations": {}}, id="that no operator wrote"),
        pytest.param({"ownerReferences": [{"kind": "X", "name": "x", "uid": "other"}]}, id="that has an owner"),
    ],
)
async def test_f25_what_is_no_orphan_of_ours_is_not_taken_over(change: dict[str, Any]) -> None:
    world = World()
    await world.settle()
    orphaned(world)
    router = world.kube.find("Deployment", "chat-router")
    assert APPLIED_HASH in router["metadata"]["annotations"]
    router["metadata"].update(change)
    world.kube.put(router)
    world.kube.put(resource())
    await world.run()
    assert world.condition("Accepted")["reason"] == "NameConflict"
    assert "ownerReferences" not in router["metadata"] or router["metadata"]["ownerReferences"][0]["uid"] == "other"


async def test_f24_what_a_crd_drops_stops_the_resource_and_nothing_is_written_to_it() -> None:
    world = World()
    await world.settle()
    found = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
    found["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:newer": {}}}}]
    found["spec"]["decode"] = {"replicas": 7}
    world.kube.put(found)
    writes = world.kube.writes
    await world.run()
    await world.run()
    assert world.kube.writes == writes
    assert world.replicas("decode") == (2, 2)
    assert [e["reason"] for e in world.kube.events].count("FieldsDropped") == 1
