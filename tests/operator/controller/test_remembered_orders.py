"""What a run that has read from memory must neither decide, note, nor forget."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.controller.rolling import Rolling
from tests.operator.controller.test_drainer import Drained
from tests.operator.controller.test_pod_moves import Moving
from tests.operator.controller.world import KEY, World

from disagg_operator.controller import full_list
from disagg_operator.controller.victims import is_marked
from disagg_operator.kube.errors import Denied, Retry
from disagg_operator.kube.resources import (
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    NETWORK_POLICY,
    POD,
    SERVICE,
    Resource,
)
from disagg_operator.vocabulary import Key, Obj


def owners_of(world: World, name: str) -> set[str]:
    references = world.kube.find("NetworkPolicy", name)["metadata"]["ownerReferences"]
    return {owner["name"] for owner in references if owner["kind"] == "Pod"}


async def test_owners_of_policies_that_were_denied_are_written_once_they_are_allowed() -> None:
    world = Rolling()
    merge = world.kube.merge

    async def denying(resource: Resource, *more: Any) -> Obj:
        if resource is NETWORK_POLICY:
            raise Denied("policies are frozen")
        return await merge(resource, *more)

    world.kube.merge = denying  # type: ignore[assignment, method-assign]
    await world.roll()
    world.kube.merge = merge  # type: ignore[method-assign]
    for _ in range(20):  # 20 minutes
        world.clock_s += 60.0
        await world.run()
    assert owners_of(world, "chat-workers") == set(world.kube.names("Pod"))


async def test_a_role_flip_counts_from_what_the_pools_are_and_not_from_what_they_were() -> None:
    bounds = {"autoscaling": {"minReplicas": 1, "maxReplicas": 5}}
    world = Moving(prefill=bounds, decode=bounds)
    await world.begin()
    for kind in (DISAGG_DEPLOYMENT, DISAGG_POOL, POD):
        world.cache.replace(kind, await world.kube.list(kind))
    world.kube.scale("chat-decode", 3)  # of which no event has come yet
    world.kube.fail_at_write = world.kube.writes + 1
    with pytest.raises(Retry):
        await world.reconciler.run(KEY)
    flip = world.flip()
    assert flip is not None
    assert flip.sizes["decode"] == 4


async def test_a_mark_on_a_worker_is_known_before_its_event_comes() -> None:
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 2))
    world.kube.scale("chat-decode", 2)
    await world.run()
    marked = {pod["metadata"]["name"] for pod in world.cache.objects(POD) if is_marked(pod)}
    assert marked == world.marked() != set()


async def test_a_child_that_is_deleted_during_a_full_list_comes_back() -> None:
    world = World()
    await world.settle()
    newest = world.cache.newest(SERVICE)
    listed = await world.kube.list(SERVICE)
    gone = copy.deepcopy(world.kube.find("Service", "chat-router"))
    world.kube.remove("Service", "chat-router")
    gone["metadata"]["resourceVersion"] = str(world.kube._tick())  # as the API server tells deletions
    assert world.cache.drop(SERVICE, gone) == {KEY}
    world.cache.replace(SERVICE, listed, newest)
    await world.reconciler.run(KEY)  # the run that the deletion asked for
    assert "chat-router" in world.kube.names("Service")


async def test_a_child_that_is_deleted_during_a_fresh_read_comes_back() -> None:
    world = World()
    await world.settle()
    listed = world.kube.list

    async def slow(resource: Resource, *more: Any) -> list[Obj]:
        found = await listed(resource, *more)
        if resource is SERVICE and "chat-router" in world.kube.names("Service"):
            gone = copy.deepcopy(world.kube.find("Service", "chat-router"))
            world.kube.remove("Service", "chat-router")
            gone["metadata"]["resourceVersion"] = str(world.kube._tick())
            assert world.cache.drop(SERVICE, gone) == {KEY}
        return found

    world.kube.list = slow  # type: ignore[assignment, method-assign]
    world.views.doubt((KEY,))
    await world.reconciler.run(KEY)
    world.kube.list = listed  # type: ignore[method-assign]
    await world.reconciler.run(KEY)  # the run that the deletion asked for
    assert "chat-router" in world.kube.names("Service")


async def test_what_a_full_list_finds_wakes_at_once_even_if_it_breaks_off_later() -> None:
    world = World()
    await world.settle()
    world.edit(decode={"replicas": 3})
    woken: set[Key] = set()
    listed = world.kube.list

    async def broken(resource: Resource, *more: Any) -> list[Obj]:
        if resource is SERVICE:
            raise Retry("away")
        return await listed(resource, *more)

    world.kube.list = broken  # type: ignore[assignment, method-assign]
    with pytest.raises(Retry):
        await full_list.refresh(world.kube, world.cache, [], woken.update)  # type: ignore[arg-type]
    woken |= world.cache.put(DISAGG_DEPLOYMENT, world.kube.find("DisaggDeployment", "chat"))  # the watch event
    assert woken == {KEY}


async def test_a_term_begins_with_lists_and_reads_each_resource_by_itself_only_if_they_fail() -> None:
    world = World()
    await world.settle()
    world.restart()
    kube: Any = world.kube
    assert await full_list.unread(kube, world.cache, []) == []
    assert world.cache.keys() == [KEY]
    assert {obj["kind"] for obj in world.cache.family(KEY)} >= {"Deployment", "DisaggPool", "Service"}
    listed = world.kube.list

    async def away(resource: Resource, *more: Any) -> list[Obj]:
        if resource is SERVICE:
            raise Retry("away")
        return await listed(resource, *more)

    world.kube.list = away  # type: ignore[assignment, method-assign]
    assert await full_list.unread(kube, world.cache, []) == [KEY]


async def test_what_was_accepted_before_is_known_although_the_cache_takes_the_resource_for_new() -> None:
    """Another operator has created everything and led until now; no event of that has come."""
    world = World()
    bare = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
    await world.settle()
    world.restart()
    world.edit(router={"replicas": 2})
    world.kube.invalid_names.add("chat-router")
    world.kube.remove("Service", "chat-decode")
    bare["spec"] = copy.deepcopy(world.kube.find("DisaggDeployment", "chat")["spec"])
    world.cache.put(DISAGG_DEPLOYMENT, bare)
    await world.reconciler.run(KEY)
    assert world.condition("Accepted")["status"] == "False"
    assert "chat-decode" in world.kube.names("Service")  # the spec that was accepted is served on
