"""Tests of who may read decisions, over real sockets, and of what `disagg explain` does for it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession

from disagg_operator.controller import health
from disagg_operator.controller.decisions_right import KEY_HEADER, DecisionsRight, key_in, secret_name
from disagg_operator.controller.health import HealthServer
from disagg_operator.kube.errors import KubeError, NotLeading, Retry
from disagg_operator.kube.resources import Resource
from disagg_operator.settings import OperatorSettings
from disagg_operator.vocabulary import Key, Obj

NAME = "op-decisions"


class Api:
    """The Secret of the operator's namespace."""

    def __init__(self) -> None:
        self.secret: Obj | None = None
        self.calls: list[str] = []
        self.refuses: KubeError | None = None

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        assert (resource.kind, namespace, name) == ("Secret", "sys", NAME)
        self.calls.append("get")
        if isinstance(self.refuses, Retry):
            raise self.refuses
        return self.secret

    async def create(self, obj: Obj) -> Obj:
        self.calls.append("create")
        if self.refuses is not None:
            raise self.refuses
        self.secret = obj
        return obj

    @property
    def key(self) -> str:
        key = key_in(self.secret)
        assert key is not None
        return key


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def test_the_key_is_made_when_it_is_asked_for_and_read_no_oftener_than_it_may_be() -> None:
    api, clock = Api(), Clock()
    right = DecisionsRight(api, "sys", "op", clock)
    assert not await right.has("", "127.0.0.1")
    assert api.calls == ["get", "create"]
    for _ in range(100):
        assert not await right.has("guess", "127.0.0.1")
        assert await right.has(api.key, "10.0.0.1")
    assert api.calls == ["get", "create"]
    assert not await right.has("\udcff\u0142", "127.0.0.1")


async def test_another_secret_counts_at_once_and_the_old_key_not_for_long() -> None:
    api, clock = Api(), Clock()
    right = DecisionsRight(api, "sys", "op", clock)
    await right.has("", None)
    old, api.secret = api.key, None
    clock.now_s += 10
    assert await right.has(old, None)
    clock.now_s += 60
    assert not await right.has(old, None)
    assert api.key != old
    assert await right.has(api.key, None)
    api.secret = {"data": {"key": base64.b64encode(b"x" * 40).decode()}}
    clock.now_s += 5
    assert await right.has("x" * 40, None)


@pytest.mark.parametrize(
    "secret", [{}, {"data": {}}, {"data": {"key": "!"}}, {"data": {"key": ""}}, {"data": {"key": "eA=="}}]
)
async def test_a_secret_without_a_key_lets_nobody_in(secret: Obj) -> None:
    api = Api()
    api.secret = secret
    assert not await DecisionsRight(api, "sys", "op", Clock()).has("", None)
    assert not await DecisionsRight(api, "sys", "op", Clock()).has("x", None)


async def test_one_that_stands_by_makes_no_key_and_an_api_server_that_is_away_takes_none() -> None:
    api, clock = Api(), Clock()
    api.refuses = NotLeading("no")
    right = DecisionsRight(api, "sys", "op", clock)
    assert not await right.has("x", None)
    leader = Api()
    await DecisionsRight(leader, "sys", "op", clock).has("", None)
    api.secret, api.refuses = leader.secret, None
    clock.now_s += 5
    assert await right.has(leader.key, None)
    api.refuses = Retry("away")
    clock.now_s += 300
    assert await right.has(leader.key, None)


async def test_without_a_lease_only_its_own_machine_is_answered() -> None:
    right = DecisionsRight(Api(), "", "op", Clock())
    for peer, answered in (("127.0.0.1", True), ("::1", True), ("10.0.0.1", False), (None, False), ("x", False)):
        assert await right.has("", peer) == answered


@asynccontextmanager
async def serving(api: Api, records: Any) -> AsyncIterator[str]:
    settings = OperatorSettings.model_construct(
        worker_image="w",
        router_image="r",
        health_host="127.0.0.1",
        health_port=0,
        lease_namespace="sys",
        lease_name="op",
    )
    server = HealthServer(settings, api, Clock(), lambda: None, lambda: None, lambda _: (b"", ""), records)
    await server.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        await server.stop()


async def test_strangers_on_the_port_get_no_decisions_and_all_the_rest() -> None:
    asked = list[Key]()

    def records(key: Key, since_s: float) -> Iterator[bytes]:
        asked.append(key)
        yield b'{"begin": true}\n' * 100_000
        yield b"%g\n" % since_s

    api = Api()
    async with serving(api, records) as url, ClientSession() as http:
        path = f"{url}/decisions/team/chat?since=5"
        for headers in ({}, {KEY_HEADER: "x" * 64}, {"Authorization": "Bearer x"}):
            async with http.get(path, headers=headers) as answer:
                assert answer.status == 401
                assert KEY_HEADER in (await answer.json())["message"]
        assert not asked
        async with http.get(path, headers={KEY_HEADER: api.key}) as answer:
            assert (answer.status, answer.headers["content-type"]) == (200, "application/jsonl")
            assert (await answer.read()).endswith(b'{"begin": true}\n5\n')
        assert asked == [("team", "chat")]
        for other in ("/livez", "/healthz", "/metrics"):
            async with http.get(url + other) as answer:
                assert answer.status == 200
    assert secret_name("op") == NAME


async def test_more_readers_than_there_is_room_for_are_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_WAIT_S", 0.05)
    loop, go, began = asyncio.get_running_loop(), asyncio.Event(), list[int]()

    def records(key: Key, since_s: float) -> Iterator[bytes]:
        began.append(1)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        yield b"x\n"

    api = Api()
    async with serving(api, records) as url, ClientSession() as http:
        (await http.get(f"{url}/decisions/team/chat")).close()

        async def read() -> int:
            async with http.get(f"{url}/decisions/team/chat", headers={KEY_HEADER: api.key}) as answer:
                await answer.read()
                return answer.status

        first = [asyncio.create_task(read()) for _ in range(2)]
        async with asyncio.timeout(30):
            while len(began) < 2:
                await asyncio.sleep(0.01)
        assert await read() == 503
        go.set()
        assert await asyncio.gather(*first) == [200, 200]
        assert await read() == 200
