"""Tests that workers which are not ready are asked what keeps them from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.controller.starting_pods import StartingPods
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, POD
from disagg_operator.vocabulary import Key
from disagg_wire.problems import WorkerProblem

KEY = ("ns", "chat")
UNKNOWN = {"reason": "UnknownEngineVersion", "message": "vllm 9.9"}


class Rig:
    """A worker that answers on the loopback interface, and the part that asks it."""

    def __init__(self) -> None:
        self.port = 0
        self.answer: Any = {"state": "starting"}
        self.status = 200
        self.now_s = 100.0
        self.bearers: list[str | None] = []
        self.woken: list[Key] = []
        self.cache, self.live = Cache(), LiveTable()
        self.door = DirectDoor()
        self.starting = StartingPods(
            self.cache, self.live, self.door, self._bearer_of, self.woken.append, lambda: self.now_s
        )
        self.cache.put(DISAGG_DEPLOYMENT, {"metadata": {"name": "chat", "namespace": "ns", "uid": "u"}})

    async def _bearer_of(self, key: Key) -> str | None:
        return "secret"

    async def info(self, request: web.Request) -> web.Response:
        self.bearers.append(request.headers.get("Authorization"))
        return web.json_response(self.answer, status=self.status)

    def pod(self, **changes: Any) -> None:
        labels = {"disagg.dev/deployment": "chat", "disagg.dev/pool": "prefill"}
        ports = [{"name": "http", "containerPort": self.port}]
        ready = {"type": "Ready", "status": changes.pop("ready", "False")}
        meta = {"name": "p", "namespace": "ns", "uid": "p", "labels": labels, **changes}
        status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [ready]}
        self.cache.put(POD, {"metadata": meta, "spec": {"containers": [{"ports": ports}]}, "status": status})

    async def told(self) -> dict[str, WorkerProblem]:
        await self.starting.look()
        return self.live.of(KEY, "u").told


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    found = Rig()
    async with serving(web.get("/internal/v1/info", found.info)) as found.port:
        yield found
    await found.door.close()


async def test_what_a_worker_says_wakes_its_deployment_once(rig: Rig) -> None:
    rig.pod()
    assert await rig.told() == {}
    assert rig.woken == []
    rig.answer = {"state": "starting", "problem": UNKNOWN}
    assert await rig.told() == {"p": WorkerProblem("UnknownEngineVersion", "vllm 9.9")}
    assert await rig.told() == {"p": WorkerProblem("UnknownEngineVersion", "vllm 9.9")}
    assert rig.woken == [KEY]
    rig.answer = {"state": "starting"}
    assert await rig.told() == {}
    assert rig.woken == [KEY, KEY]
    assert set(rig.bearers) == {"Bearer secret"}


async def test_what_it_said_holds_while_it_is_silent_for_a_moment(rig: Rig) -> None:
    rig.pod()
    rig.answer = {"problem": UNKNOWN}
    await rig.told()
    rig.status, rig.now_s = 500, 110.0
    assert set(await rig.told()) == {"p"}
    rig.now_s = 116.0
    assert await rig.told() == {}


@pytest.mark.parametrize("changes", [{"ready": "True"}, {"deletionTimestamp": "now"}])
async def test_a_worker_that_is_ready_or_ending_is_not_asked(rig: Rig, changes: dict[str, Any]) -> None:
    rig.answer = {"problem": UNKNOWN}
    rig.pod()
    assert set(await rig.told()) == {"p"}
    asked = len(rig.bearers)
    rig.pod(**changes)
    assert await rig.told() == {}
    assert len(rig.bearers) == asked


@pytest.mark.parametrize("answer", [[], {"problem": "x"}, {"problem": {"reason": "two words"}}])
async def test_an_answer_that_makes_no_sense_says_nothing(rig: Rig, answer: Any) -> None:
    rig.pod()
    rig.answer = answer
    assert await rig.told() == {}
