"""An operator with other images or another renderer restarts nobody who has not asked for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.controller.world import KEY, World
from tests.operator.desired.test_pins import NEW, OLD, VLLM, adapted, builtin

from disagg_operator.cli.rollout_command import state_of
from disagg_operator.controller.runtime_updates import ChosenRuntime, RuntimeUpdates, choose
from disagg_operator.desired import Images, pins
from disagg_operator.desired.pins import RUNTIME_ANNOTATION, Pins
from disagg_operator.kube.resources import DISAGG_POOL
from disagg_operator.vocabulary import UPDATE_RUNTIME

KINDS = ("prefill", "decode", "router")


def templates(world: World) -> dict[str, Any]:
    found = {k: world.kube.find("Deployment", f"chat-{k}")["spec"]["template"] for k in KINDS}
    return copy.deepcopy(found)


def images(world: World) -> set[str]:
    return {t["spec"]["containers"][0]["image"] for t in templates(world).values()}


def ask(world: World, value: str) -> None:
    found = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
    found["metadata"].setdefault("annotations", {})[UPDATE_RUNTIME] = value
    world.kube.put(found)


def ready(world: World) -> None:
    """Let all pods of the present Deployments be ready."""
    for kind in KINDS:
        found = copy.deepcopy(world.kube.find("Deployment", f"chat-{kind}"))
        n = found["spec"]["replicas"]
        counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas", "availableReplicas"), n)
        found["status"] = {"observedGeneration": found["metadata"]["generation"], **counts}
        world.kube.put(found)


async def upgraded(**spec: Any) -> World:
    """Return a cluster whose operator was replaced by one with other images."""
    world = World(**spec)
    await world.settle()
    ready(world)
    await world.settle()
    world.images = Images(worker="w:2", router="r:2")
    return world


async def test_other_images_change_no_pod_and_are_told_once() -> None:
    world = await upgraded()
    assert world.condition("RuntimeUpToDate")["status"] == "True"
    before = templates(world)
    for _ in range(2):
        world.restart()
        await world.settle()
    assert templates(world) == before
    found = world.condition("RuntimeUpToDate")
    assert (found["status"], found["reason"]) == ("False", "RuntimeUpdateAvailable")
    assert found["message"].startswith("worker w:1 -> w:2, router r:1 -> r:2; ")
    told = [e for e in world.kube.events if e["reason"] == "RuntimeUpdateAvailable"]
    assert [e["type"] for e in told] == ["Normal"]


async def test_an_edit_keeps_the_pins() -> None:
    world = await upgraded()
    world.restart()
    world.edit(engine={"dtype": "float32"})
    await world.settle()
    assert images(world) == {"w:1", "r:1"}


async def test_the_annotation_moves_them_once_for_each_value() -> None:
    world = await upgraded()
    world.restart()
    ask(world, "monday")
    await world.settle()
    assert images(world) == {"w:2", "r:2"}
    assert world.condition("RuntimeUpToDate")["status"] == "True"
    world.images = Images(worker="w:3", router="r:3")
    world.restart()
    await world.settle()
    assert images(world) == {"w:2", "r:2"}
    ask(world, "tuesday")
    await world.settle()
    assert images(world) == {"w:3", "r:3"}


async def test_a_request_is_waited_for_until_the_status_speaks_of_it() -> None:
    world = await upgraded()
    world.restart()
    await world.settle()
    assert state_of(world.kube.find("DisaggDeployment", "chat"))[0] is True
    ask(world, "m" * 300)
    waiting = state_of(world.kube.find("DisaggDeployment", "chat"))
    assert waiting[0] is None
    assert "worker w:1 -> w:2" in waiting[1]
    await world.settle()
    found = world.kube.find("DisaggDeployment", "chat")
    assert found["status"]["runtimeRequest"] == "m" * 256
    ended, words = state_of(found)
    assert ended is None
    assert words.startswith("RollingOut: ")


async def test_a_request_from_before_an_upgrade_does_not_count_after_it() -> None:
    world = World()
    await world.settle()
    ask(world, "monday")
    await world.settle()
    world.images = Images(worker="w:2", router="r:2")
    world.restart()
    await world.settle()
    assert images(world) == {"w:1", "r:1"}


async def test_a_new_resource_has_the_images_of_the_release() -> None:
    world = World()
    world.images = Images(worker="w:2", router="r:2")
    world.restart()
    await world.settle()
    assert images(world) == {"w:2", "r:2"}


@pytest.mark.parametrize("text", [None, "", "{}", "somebody wrote this"])
async def test_pins_that_are_lost_are_found_again_and_recorded(text: str | None) -> None:
    world = await upgraded()
    ask(world, "long ago")
    before = templates(world)
    for role in ("prefill", "decode"):
        pool = copy.deepcopy(world.kube.find("DisaggPool", f"chat-{role}"))
        annotations = pool["metadata"]["annotations"]
        annotations.pop(RUNTIME_ANNOTATION) if text is None else annotations.update({RUNTIME_ANNOTATION: text})
        world.kube.put(pool)
    world.restart()
    await world.settle()
    assert templates(world) == before
    for role in ("prefill", "decode"):
        kept = world.kube.find("DisaggPool", f"chat-{role}")["metadata"]["annotations"][RUNTIME_ANNOTATION]
        found = pins.from_text(kept, Images())
        assert found is not None
        assert (found.images.worker, found.images.router) == ("w:1", "r:1")


async def test_images_that_change_no_pod_are_taken_over_silently() -> None:
    world = await upgraded(engine={"image": "own:1"}, router={"replicas": 1, "image": "own:2"})
    world.restart()
    before = templates(world)
    await world.settle()
    assert templates(world) == before
    assert world.condition("RuntimeUpToDate")["status"] == "True"


async def test_the_operator_moves_the_pins_by_itself_if_it_may_and_says_when_the_pods_are_there() -> None:
    world = await upgraded()
    world.runtime_updates = 1
    world.restart()
    await world.settle()
    assert images(world) == {"w:2", "r:2"}
    assert not world.updates.may_begin(("default", "other"))
    ready(world)
    await world.settle()
    assert world.updates.may_begin(("default", "other"))


async def test_a_move_in_progress_is_known_after_a_restart() -> None:
    world = await upgraded()
    world.runtime_updates = 1
    world.restart()
    await world.settle()
    world.restart()
    world.updates.begin(await world.kube.list(DISAGG_POOL))
    assert not world.updates.may_begin(("default", "other"))
    await world.settle()
    assert not world.updates.may_begin(("default", "other"))
    ready(world)
    await world.settle()
    assert world.updates.may_begin(("default", "other"))


async def test_a_resource_whose_rollout_is_not_complete_is_not_moved_by_the_operator() -> None:
    world = World()
    await world.settle()
    world.images = Images(worker="w:2", router="r:2")
    world.runtime_updates = 1
    world.restart()
    await world.settle()
    assert images(world) == {"w:1", "r:1"}
    assert world.updates.may_begin(("default", "other"))


def test_what_an_update_of_another_engine_would_change_is_told() -> None:
    dd = adapted()
    resource = {"metadata": {"name": dd.metadata.name, "namespace": "default"}, "spec": VLLM}
    pool = {"metadata": {"annotations": {RUNTIME_ANNOTATION: pins.to_text(Pins(OLD))}}}
    found = choose(resource, dd, {("DisaggPool", f"{dd.metadata.name}-decode"): pool}, NEW, lambda: False)
    engine = dd.spec.engine.known.image
    expected = f"worker vllm:old -> {engine}, router router:old -> router:new, adapter adapter:old -> adapter:new"
    assert (found.pins.images, found.update) == (OLD, expected)


def test_no_more_than_the_limit_move_at_a_time_and_the_next_ones_are_woken() -> None:
    woken: list[Any] = []
    updates = RuntimeUpdates(2, woken.append)
    keys = [("ns", name) for name in "abcd"]
    assert [updates.may_begin(key) for key in keys] == [True, True, False, False]
    assert updates.may_begin(keys[0]), "one that has begun may go on"
    moving, waiting, done = (
        ChosenRuntime(Pins(NEW, moving=True)),
        ChosenRuntime(Pins(OLD), "x -> y"),
        ChosenRuntime(Pins(NEW)),
    )
    for key, runtime in zip(keys, (moving, moving, waiting, waiting), strict=True):
        updates.note(key, runtime)
    assert woken == []
    updates.note(keys[0], done)
    assert woken == keys[2:]
    assert updates.may_begin(keys[2])
    assert not updates.may_begin(keys[3])
    updates.note(keys[1], None)
    assert updates.may_begin(keys[3])


def test_without_a_limit_nobody_is_moved_or_woken() -> None:
    woken: list[Any] = []
    updates = RuntimeUpdates(0, woken.append)
    updates.note(KEY, ChosenRuntime(Pins(OLD), "x -> y"))
    assert not updates.may_begin(KEY)
    updates.note(KEY, None)
    assert woken == []


def test_a_term_begins_with_the_moves_that_pools_tell_of() -> None:
    updates = RuntimeUpdates(1, lambda key: None)
    labels = {"disagg.dev/deployment": "chat"}

    def pool(text: str) -> dict[str, Any]:
        return {"metadata": {"namespace": "ns", "labels": labels, "annotations": {RUNTIME_ANNOTATION: text}}}

    updates.begin([pool("?"), pool(pins.to_text(Pins(OLD)))])
    assert updates.may_begin(("ns", "other"))
    updates.begin([pool(pins.to_text(Pins(OLD, moving=True)))])
    assert not updates.may_begin(("ns", "other"))
    assert updates.may_begin(("ns", "chat"))


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["begin", "done", "gone", "wait"])), max_size=40))
def test_the_limit_is_never_exceeded(steps: list[tuple[int, str]]) -> None:
    updates, moving = RuntimeUpdates(2, lambda key: None), set()
    for number, step in steps:
        key = ("ns", str(number))
        if step == "begin" and updates.may_begin(key):
            moving.add(key)
            updates.note(key, ChosenRuntime(Pins(NEW, moving=True)))
        elif step != "begin":
            moving.discard(key)
            states = {"done": ChosenRuntime(Pins(NEW)), "gone": None, "wait": ChosenRuntime(Pins(OLD), "x -> y")}
            updates.note(key, states[step])
        assert len(moving) <= 2


def test_builtin_workers_do_not_mention_adapters() -> None:
    dd = builtin()
    resource = {"metadata": {"name": dd.metadata.name, "namespace": "default"}}
    pool = {"metadata": {"annotations": {RUNTIME_ANNOTATION: pins.to_text(Pins(OLD))}}}
    found = choose(resource, dd, {("DisaggPool", f"{dd.metadata.name}-prefill"): pool}, NEW, lambda: True)
    assert found.update == "worker worker:old -> worker:new, router router:old -> router:new"
