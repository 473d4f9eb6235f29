"""The own objects that may not be watched are looked at in turn, and made again."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.controller.world import KEY, World

from disagg_operator.autoscaling.records.state_store import StateStore, decode, encode
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.own_objects import OwnObjects, next_ones
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT

SPEC, STATE, KEY_SECRET = "chat-accepted-spec", "chat-scaling-state", "chat-cluster-key"


class Looked(World):
    """A world with what looks at the own objects; its cache sees nothing new of itself."""

    def restart(self) -> None:
        super().restart()
        specs: Any = self.reconciler._judge._specs
        assert isinstance(specs, SpecsInConfigMaps)
        self.states = StateKeeper(StateStore(self.kube), None, lambda: self.clock_s)  # type: ignore[arg-type]
        self.own = OwnObjects(self.cache, self.live, self.views, specs, self.states, self.woken.append)

    async def look(self) -> bool:
        """Look once, and return whether the resource was woken."""
        self.woken.clear()
        await self.own.look()
        return self.woken == [KEY]


async def settled() -> Looked:
    world = Looked()
    await world.settle()
    assert not await world.look()
    return world


async def test_a_secret_that_is_gone_is_made_again() -> None:
    world = await settled()
    world.kube.remove("Secret", KEY_SECRET)
    assert await world.look()
    await world.run()
    assert world.kube.find("Secret", KEY_SECRET)
    assert not await world.look()


@pytest.mark.parametrize("how", ["deleted", "edited", "of nobody"])
@pytest.mark.parametrize("refused", [False, True])
async def test_the_accepted_spec_is_written_again_as_it_was(how: str, refused: bool) -> None:
    world = await settled()
    before = copy.deepcopy(world.kube.find("ConfigMap", SPEC))
    if refused:  # then the last accepted one is served
        world.edit(decode={"replicas": -1})
        await world.settle()
        assert not await world.look()
    if how == "deleted":
        world.kube.remove("ConfigMap", SPEC)
    else:
        data = {**before["data"], "spec": encode({"model": {"uri": "file:///other"}})}
        edited = {"data": data} if how == "edited" else {"metadata": {**before["metadata"], "ownerReferences": []}}
        world.kube.put({**before, **edited})
    assert await world.look()
    await world.run()
    after = world.kube.find("ConfigMap", SPEC)
    assert after["metadata"]["ownerReferences"] == before["metadata"]["ownerReferences"]
    assert decode(after["data"]["spec"]) == decode(before["data"]["spec"])
    assert after["data"]["generation"] == before["data"]["generation"]
    assert not await world.look()


async def test_a_scaling_state_that_is_gone_is_saved_again() -> None:
    world = await settled()
    entry = world.live.of(KEY, world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"])
    await world.look()
    assert not entry.unsaved  # nothing was saved
    entry.unsaved, world.clock_s = True, 1000.0
    await world.states.save_if_due(KEY, entry, world.clock_s)
    await world.look()
    assert (entry.unsaved, entry.stored_s) == (False, 1000.0)
    world.kube.remove("ConfigMap", STATE)
    await world.look()
    assert entry.unsaved
    await world.states.save_if_due(KEY, entry, world.clock_s)
    assert world.kube.find("ConfigMap", STATE)


async def test_a_refused_or_ending_resource_costs_no_look() -> None:
    world = Looked(decode={"replicas": -1})
    await world.settle()
    reads: list[str] = []
    get = world.kube.get

    async def counted(*where: Any) -> Any:
        reads.append(where[2])
        return await get(*where)

    world.kube.get = counted  # type: ignore[method-assign, assignment]
    assert not await world.look()
    world.cache.replace(DISAGG_DEPLOYMENT, [])
    assert not await world.look()
    assert reads == []


def test_all_have_their_turn() -> None:
    keys = [("n", name) for name in "abcde"]
    last, seen = ("", ""), []
    for _ in range(5):
        chosen = next_ones(keys, last, 2)
        last = chosen[-1]
        seen += [name for _, name in chosen]
    assert "".join(seen) == "abcdeabcde"
    assert next_ones(keys[:1], ("n", "z"), 2) == keys[:1]
    assert next_ones([], last, 2) == []
