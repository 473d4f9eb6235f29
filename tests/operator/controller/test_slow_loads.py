"""A model that loads for longer than the deadline of a rollout, and one that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving
from tests.operator.controller.rolling import ROLES, Rolling
from tests.operator.controller.world import KEY

from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.controller.starting_pods import StartingPods
from disagg_operator.kube.resources import POD, labels_of
from disagg_operator.vocabulary import Obj

DEADLINE_S = 600


class Loading(Rolling):
    """A cluster in which the workers that are not ready answer on one port of this machine."""

    def __init__(self) -> None:
        super().__init__(rollout={"progressDeadlineSeconds": DEADLINE_S, "autoRollback": True})
        self.port = 0
        self.info: Any = {}
        self.door = DirectDoor()
        self.starting = StartingPods(
            self.cache, self.live, self.door, self._bearer, self.woken.append, lambda: self.clock_s
        )

    async def _bearer(self, key: Any) -> str | None:
        return None

    async def answer(self, _: web.Request) -> web.Response:
        return web.json_response(self.info)

    def kubelets(self) -> None:
        super().kubelets()
        for (kind, _, _), pod in self.kube.objects.items():
            if kind == POD.kind and labels_of(pod).get("disagg.dev/revision") in self.broken:
                pod["spec"]["containers"] = [{"name": "main", "ports": [{"name": "http", "containerPort": self.port}]}]
                pod["status"] |= {"phase": "Running", "podIP": "127.0.0.1"}

    async def begin(self) -> None:
        """Begin a rollout to workers that do not become ready."""
        await self.roll()
        serving = {key[1] for key in self.workloads()}
        self.edit(engine={"dtype": "float32"})
        await self.run()
        self.broken |= {key[1] for key in self.workloads()} - serving
        await self.roll()

    async def loads(self, seconds: int, loaded_bytes: int) -> str:
        """Let time pass after which so much is loaded, and return the reason of `Progressing`."""
        self.later(seconds)
        self.info = {"state": "starting", "loading": {"read_bytes": loaded_bytes, "total_bytes": 1 << 40}}
        self.cache.replace(POD, await self.kube.list(POD))
        await self.starting.look()
        await self.roll()
        return str(self.condition("Progressing")["reason"])

    def new_pods(self) -> list[Obj]:
        found = [obj for (kind, _, _), obj in self.kube.objects.items() if kind == POD.kind]
        return [pod for pod in found if labels_of(pod).get("disagg.dev/revision") in self.broken]


@pytest.fixture
async def world() -> AsyncIterator[Loading]:
    found = Loading()
    async with serving(web.get("/internal/v1/info", found.answer)) as found.port:
        await found.begin()
        yield found
    await found.door.close()


async def test_a_model_that_loads_on_is_waited_for_and_serves_in_the_end(world: Loading) -> None:
    for step in range(1, 6):
        assert await world.loads(DEADLINE_S - 100, step << 30) == "RollingOut"
    assert world.new_pods()
    world.broken.clear()
    for pod in list(world.kube.objects.values()):
        if pod["kind"] == POD.kind:
            pod["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_one_that_stands_still_is_rolled_back(world: Loading) -> None:
    assert await world.loads(500, 5 << 30) == "RollingOut"
    assert await world.loads(500, 5 << 30) == "RollingOut"
    assert await world.loads(101, 5 << 30) == "RolledBack"
    assert {role: world.replicas_of(role) for role in ROLES} == {role: {f"chat-{role}": 2} for role in ROLES}


async def test_one_that_is_loaded_again_and_again_gets_nowhere(world: Loading) -> None:
    assert await world.loads(300, 5 << 30) == "RollingOut"
    assert await world.loads(300, 0) == "RollingOut"  # its container has been restarted
    assert await world.loads(200, 4 << 30) == "RollingOut"
    for pod in world.new_pods():  # and replaced
        world.kube.remove("Pod", pod["metadata"]["name"])
    world.kubelets()
    assert await world.loads(101, 5 << 30) == "RolledBack"


async def test_a_worker_that_does_not_say_has_the_deadline(world: Loading) -> None:
    world.info = {"state": "starting"}
    await world.starting.look()
    await asyncio.sleep(0)
    assert world.live.of(KEY, world.live.items()[0][1].uid).loading.moved_s(()) is None
    assert await world.loads(DEADLINE_S + 1, 0) == "RolledBack"
