"""The order in which workers are told to go, called back and deleted, and what holds that up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tests.operator.controller.test_drainer import COST, Drained
from tests.operator.controller.test_rollouts_meet_refusals import allow, forbid

from disagg_operator.autoscaling.signals.direct import Target
from disagg_operator.controller.drain_ends import TOLD_ANNOTATION
from disagg_operator.controller.drainer import ASK_INTERVAL_S
from disagg_operator.kube.resources import annotations_of
from disagg_operator.vocabulary import Obj


async def test_nothing_goes_while_one_of_the_workloads_may_not_be_written() -> None:
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 1))
    forbid(world, "chat-prefill")
    world.kube.scale("chat-prefill", 2)
    world.kube.scale("chat-decode", 1)
    await world.roll()
    assert (world.replicas("decode")[1], world.marked(), world.cut) == (3, set(), [])
    allow(world)
    await world.roll()
    assert (len(world.marked()), world.cut) == (2, [])


async def test_those_that_are_idle_go_before_those_that_still_work() -> None:
    world = Drained()
    a, b, c = await world.serving()
    for idle, busy in ((b, c), (c, b)):
        world.load(**{a: 9, b: 1, c: 1})
        world.kube.scale("chat-decode", 1)
        await world.run()
        assert world.marked() == {b, c}
        world.requests[idle] = 0
        await world.drainer.look()
        await world.run()
        assert world.replicas("decode") == (1, 2)
        costs = {pod: int(annotations_of(world.kube.find("Pod", pod))[COST]) for pod in (idle, busy)}
        assert costs[idle] < costs[busy] < 0
        world.kube.scale("chat-decode", 3)
        await world.run()


async def test_a_worker_that_is_called_back_is_not_told_to_go_again() -> None:
    """The other workers are still told while it is, and all are asked every second meanwhile."""
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 5, b: 4, c: 3})
    world.kube.scale("chat-decode", 1)
    await world.roll()
    assert world.marked() == {b, c}
    merge = world.kube.merge

    async def slow(*args: Any) -> Obj:
        await world.drainer.look()
        return await merge(*args)

    world.kube.merge = slow  # type: ignore[method-assign, assignment]
    world.kube.scale("chat-decode", 3)
    await world.run()
    assert world.marked() == set()
    assert not any(map(world.refuses, (a, b, c)))


async def test_what_was_said_before_reaches_a_worker_before_it_is_called_back() -> None:
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 5, b: 4, c: 3})
    world.kube.scale("chat-decode", 2)
    await world.roll()
    late, ask = asyncio.Event(), world.drainer._ask

    async def slow(target: Target, content: Mapping[str, Any]) -> int | None:
        if content["lease_s"]:
            await late.wait()
        return await ask(target, content)

    world.drainer._ask = slow
    look = asyncio.create_task(world.drainer.look())
    await asyncio.sleep(0)
    world.kube.scale("chat-decode", 3)
    run = asyncio.create_task(world.run())
    for _ in range(50):
        await asyncio.sleep(0)
    late.set()
    await asyncio.gather(look, run)
    assert world.marked() == set()
    assert not world.refuses(c)


async def test_workers_serve_again_if_what_is_due_is_never_done() -> None:
    """Nobody reconciles the resource any more, because it is refused."""
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 1))
    world.kube.scale("chat-decode", 1)
    await world.run()
    for _ in range(400):
        world.clock_s += ASK_INTERVAL_S
        await world.drainer.look()
    assert not any(map(world.refuses, names))
    await world.run()  # told once more, and their time is over by the clock on the wall
    assert sum(map(world.refuses, names)) == 2


async def test_workers_that_do_not_answer_are_told_of_and_counted_once() -> None:
    """Nobody waits for what runs there. One of an earlier release is not expected to answer."""
    world = Drained()
    names = await world.serving(decode=4)
    world.deaf, world.old = set(names[:2]), set(names[2:3])
    deaf: list[int] = []
    world.drainer._unanswered = deaf.append
    world.kube.scale("chat-decode", 1)
    world.load(**dict.fromkeys(names[3:], 9))
    for _ in range(4):
        await world.run()
        await world.drainer.look()
    assert world.replicas("decode") == (1, 1)
    (event,) = [e for e in world.kube.events if e["reason"] == "DrainUnanswered"]
    assert event["message"].startswith(f"{names[0]}, {names[1]}: no answer to the call to drain")
    assert deaf == [2]
    told = {name: annotations_of(world.kube.find("Pod", name)).get(TOLD_ANNOTATION) for name in names}
    assert told == {names[0]: "unanswered", names[1]: "unanswered", names[2]: None, names[3]: None}
    world.restart()
    await world.run()
    assert len([e for e in world.kube.events if e["reason"] == "DrainUnanswered"]) == 1


async def test_a_worker_that_refuses_the_key_is_one_that_does_not_answer() -> None:
    world = Drained()
    await world.serving()

    async def refuse(target: Target, content: Mapping[str, Any]) -> int | None:
        return 401

    world.drainer._ask = refuse
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert world.replicas("decode") == (2, 2)
    assert "DrainUnanswered" in {e["reason"] for e in world.kube.events}
