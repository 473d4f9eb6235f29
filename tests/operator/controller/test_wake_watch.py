"""Tests of the polls that tell the operator of requests for deployments at zero."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.controller import wake_watch
from disagg_operator.controller.wake_watch import WakeWatch
from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, POD
from disagg_operator.vocabulary import Key

LIMIT_S = 20.0
CHAT, OTHER = ("ns", "chat"), ("ns", "other")


class Routers:
    """A router's answers to polls, for all deployments, and the watch that polls it."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[web.Request] = asyncio.Queue()
        self.answers: asyncio.Queue[web.Response] = asyncio.Queue()
        self.cache, self.live = Cache(), LiveTable()
        self.woken: asyncio.Queue[Key] = asyncio.Queue()
        self.watch = WakeWatch(self.cache, self.live, self._bearer, self.woken.put_nowait)
        self.port = 0

    async def _bearer(self, key: Key) -> str | None:
        return f"of-{key[1]}"

    async def _demand(self, request: web.Request) -> web.Response:
        self.asked.put_nowait(request)
        return await self.answers.get()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with serving(web.get("/internal/v1/demand", self._demand), handler_cancellation=True) as self.port:
            task = asyncio.create_task(self.watch.run())
            try:
                async with asyncio.timeout(LIMIT_S):
                    yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        assert self.watch._polls == {}

    def put(self, key: Key, mark: str, replicas: int, *, ready: str = "True") -> None:
        namespace, name = key
        self.cache.put(DISAGG_DEPLOYMENT, {"metadata": {"name": name, "namespace": namespace, "uid": name}})
        for role in ("prefill", "decode"):
            meta = {"name": f"{name}-{role}", "namespace": namespace, "annotations": {DECLARED_ANNOTATION: mark}}
            self.cache.put(DISAGG_POOL, {"metadata": meta, "spec": {"replicas": replicas}})
        labels = {"app.kubernetes.io/component": "router", "disagg.dev/deployment": name}
        status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": ready}]}
        container = {"name": "main", "ports": [{"name": "http", "containerPort": self.port}]}
        meta = {"name": f"{name}-router-1", "namespace": namespace, "uid": f"{name}-r", "labels": labels}
        self.cache.put(POD, {"metadata": meta, "spec": {"containers": [container]}, "status": status})

    def answer(self, *, wanted: bool, cursor: str = "c") -> None:
        self.answers.put_nowait(web.json_response({"wanted": wanted, "held": 0, "cursor": cursor}))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_watch, "_LOOK_S", 0.02)
    monkeypatch.setattr(wake_watch, "_RETRY_S", (0.02, 0.05))


@pytest.mark.usefixtures("quick")
async def test_only_routers_at_zero_are_polled_and_an_answer_wakes() -> None:
    routers = Routers()
    async with routers.running():
        routers.put(CHAT, "zero:1:1", 0)
        routers.put(OTHER, "1", 1)
        routers.live.of(CHAT, "chat").starts = {"decode": Starts({"x": 90.0})}
        first = await routers.asked.get()
        assert first.headers["Authorization"] == "Bearer of-chat"
        assert dict(first.query) == {"wait_s": "25", "cursor": "", "cold_start_s": "90.0"}
        routers.answer(wanted=False, cursor="p:7")
        assert (await routers.asked.get()).query["cursor"] == "p:7"
        assert routers.woken.empty()
        routers.answer(wanted=True)
        assert await routers.woken.get() == CHAT
        assert routers.live.of(CHAT, "chat").wake
        # It is polled on until its pools are not at zero any more, but said once.
        await routers.asked.get()
        routers.answer(wanted=True)
        await routers.asked.get()
        assert routers.woken.empty()
        routers.put(CHAT, "1", 1)
        while routers.watch._polls:
            await asyncio.sleep(0.01)
        assert routers.live.of(OTHER, "other").wake is False


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "answer",
    [
        web.Response(status=404),
        web.Response(text="[" * 100),
        web.Response(text="x" * 10_000),
        web.Response(status=302, headers={"location": "/"}),
    ],
    ids=["a router of an earlier release", "no answer", "too long an answer", "a redirect"],
)
async def test_what_makes_no_sense_wakes_nobody_and_is_asked_again(answer: web.Response) -> None:
    routers = Routers()
    async with routers.running():
        routers.put(CHAT, "zero:1:1", 0)
        await routers.asked.get()
        routers.answers.put_nowait(answer)
        again = await routers.asked.get()
        assert (again.query["cursor"], routers.woken.empty()) == ("", True)


@pytest.mark.usefixtures("quick")
async def test_the_polls_are_bounded_and_all_deployments_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_watch, "_MOST_POLLS", 1)
    routers = Routers()
    async with routers.running():
        for key in (CHAT, OTHER):
            routers.put(key, "zero:1:1", 0)
        bearers = set[Any]()
        while len(bearers) < 2:
            request = await routers.asked.get()
            assert routers.asked.empty()
            bearers.add(request.headers["Authorization"])
            routers.answer(wanted=False)
        assert float(request.query["wait_s"]) == 12.5


@pytest.mark.usefixtures("quick")
async def test_a_router_that_is_ending_tells_of_the_requests_that_it_holds() -> None:
    routers = Routers()
    async with routers.running():
        routers.put(CHAT, "zero:1:1", 0, ready="False")
        await routers.asked.get()
        routers.answer(wanted=True)
        assert await routers.woken.get() == CHAT


async def test_a_router_that_answers_at_once_is_not_asked_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wake_watch, "_RETRY_S", (LIMIT_S, LIMIT_S))
    routers = Routers()
    async with routers.running():
        routers.put(CHAT, "zero:1:1", 0)
        for _ in range(3):
            routers.answer(wanted=False)
        await routers.asked.get()
        await asyncio.sleep(0.05)
        assert routers.asked.empty()
