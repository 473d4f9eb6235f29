"""Tests of the membership from EndpointSlices: list, watch, and failures of the API server.

They use a small API server on a real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from disagg_router.membership import kubernetes
from disagg_router.membership.kubernetes import KubernetesMembership, members_of


def slice_of(name: str, *endpoints: tuple[str, str, bool | None]) -> dict[str, Any]:
    listed: list[dict[str, Any]] = []
    for pod, address, ready in endpoints:
        conditions = {} if ready is None else {"ready": ready}
        listed.append({"addresses": [address], "conditions": conditions, "targetRef": {"kind": "Pod", "name": pod}})
    return {
        "metadata": {"name": name, "resourceVersion": "1"},
        "ports": [{"name": "http", "port": 8000}],
        "endpoints": listed,
    }


def test_addresses_become_members_that_are_ready_or_not_but_those_that_terminate_do_not() -> None:
    content = slice_of("s", ("a", "10.0.0.1", True), ("b", "10.0.0.2", False), ("c", "fd00::1", None))
    content["endpoints"].append(
        {
            "addresses": ["10.0.0.4"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "targetRef": {"kind": "Pod", "name": "d"},
        }
    )
    found = members_of(content)
    assert {n: (m.url, m.ready) for n, m in found.items()} == {
        "a": ("http://10.0.0.1:8000", True),
        "b": ("http://10.0.0.2:8000", False),
        "c": ("http://[fd00::1]:8000", True),
    }
    assert {n: m.url for n, m in members_of(content, terminating=True).items()} == {"d": "http://10.0.0.4:8000"}


def test_a_slice_carries_what_the_operator_says_of_a_canary() -> None:
    content = slice_of("s", ("a", "10.0.0.1", True))
    assert members_of(content)["a"].canary == ""
    content["metadata"]["labels"] = {"disagg.dev/pool": "decode", "disagg.dev/canary": "10.r0a"}
    assert members_of(content)["a"].canary == "10.r0a"


def test_a_slice_names_its_pool_and_a_pod_that_moves_is_in_both(tmp_path: Path) -> None:
    def labelled(name: str, pool: str) -> dict[str, Any]:
        content = slice_of(name, ("a", "10.0.0.1", pool == "decode"))
        content["metadata"]["labels"] = {"disagg.dev/pool": pool}
        return content

    assert members_of(labelled("s", "decode"))["a"].pools == {"decode"}
    assert members_of(slice_of("s", ("a", "10.0.0.1", True)))["a"].pools == frozenset()
    membership = KubernetesMembership("http://x", "ns", "chat", tmp_path)
    membership._slices = {pool: members_of(labelled(pool, pool)) for pool in ("prefill", "decode")}
    assert membership.members()["a"].pools == {"prefill", "decode"}
    assert membership.members()["a"].ready


@pytest.mark.parametrize(
    "change",
    [
        {"ports": None},
        {"ports": []},
        {"endpoints": None},
        {"endpoints": [{"addresses": []}]},
        {"endpoints": [{"addresses": ["10.0.0.1"]}]},
    ],
)
def test_slices_without_port_or_pods_give_nobody(change: dict[str, Any]) -> None:
    assert members_of(slice_of("s", ("a", "10.0.0.1", True)) | change) == {}


class ApiServer:
    """A small API server.

    LIST answers `slices`; a WATCH sends the events that `send` queues, and None ends it.
    `watch_status` is the status of the next watch.
    """

    def __init__(self) -> None:
        self.slices: list[dict[str, Any]] = []
        self.version = 10
        self.lists = 0
        self.list_status = self.watch_status = 200
        self.watches: list[str] = []
        self.headers: dict[str, str] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.url = ""

    def send(self, kind: str, content: dict[str, Any]) -> None:
        self.version += 1
        if "metadata" in content:
            content = content | {"metadata": content["metadata"] | {"resourceVersion": str(self.version)}}
        self._events.put_nowait({"type": kind, "object": content})

    def end_watch(self) -> None:
        self._events.put_nowait(None)

    async def _get(self, request: Request) -> Response:
        self.headers = dict(request.headers)
        assert request.query_params["labelSelector"] == "disagg.dev/deployment=chat,disagg.dev/pool"
        if "watch" not in request.query_params:
            self.lists += 1
            return JSONResponse(
                {"metadata": {"resourceVersion": str(self.version)}, "items": self.slices}, self.list_status
            )
        self.watches.append(request.query_params["resourceVersion"])
        if self.watch_status != 200:
            status, self.watch_status = self.watch_status, 200
            return JSONResponse({}, status)

        async def lines() -> AsyncIterator[bytes]:
            while (event := await self._events.get()) is not None:
                yield json.dumps(event).encode() + b"\n"

        return StreamingResponse(lines())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        app = Starlette(routes=[Route("/apis/discovery.k8s.io/v1/namespaces/ns/endpointslices", self._get)])
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=0))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield
        finally:
            server.should_exit = True
            self.end_watch()
            await task


@contextlib.asynccontextmanager
async def following(folder: Path, server: ApiServer) -> AsyncIterator[KubernetesMembership]:
    (folder / "token").write_text("sa-token\n")
    (folder / "ca.crt").write_text(Path(certifi.where()).read_text())
    async with server.running():
        members = KubernetesMembership(server.url, "ns", "chat", folder)
        task = asyncio.create_task(members.run())
        try:
            yield members
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_list_and_every_change_of_the_watch_are_followed(tmp_path: Path) -> None:
    server = ApiServer()
    server.slices = [slice_of("s1", ("a", "10.0.0.1", True))]
    async with following(tmp_path, server) as members:
        await until(lambda: members.synced)
        assert set(members.members()) == {"a"}
        assert server.headers["authorization"] == "Bearer sa-token"
        server.send("ADDED", slice_of("s2", ("b", "10.0.0.2", True)))
        await until(lambda: set(members.members()) == {"a", "b"})
        server.send("MODIFIED", slice_of("s2", ("b", "10.0.0.2", False), ("c", "10.0.0.3", True)))
        await until(lambda: {n for n, m in members.members().items() if m.ready} == {"a", "c"})
        server.send("DELETED", slice_of("s1"))
        await until(lambda: set(members.members()) == {"b", "c"})
        server.send("BOOKMARK", {"metadata": {}})
        server.end_watch()
        await until(lambda: len(server.watches) == 2)
        # The next watch goes on from the bookmark, without a new list.
        assert (server.watches, server.lists) == (["10", "14"], 1)


async def test_workers_that_terminate_or_whose_slice_is_gone_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a deployment is deleted, its slices are gone before its pods are."""
    monkeypatch.setattr(kubernetes, "_MOST_GONE", 1)
    server = ApiServer()
    server.slices = [slice_of("s1", ("a", "10.0.0.1", True)), slice_of("s2", ("b", "10.0.0.2", True))]
    async with following(tmp_path, server) as members:
        await until(lambda: members.synced)
        ends = slice_of("s1", ("a", "10.0.0.1", False))
        ends["endpoints"][0]["conditions"]["terminating"] = True
        server.send("MODIFIED", ends)
        await until(lambda: set(members.leaving()) == {"a"})
        assert set(members.members()) == {"b"}
        server.send("MODIFIED", slice_of("s1"))
        await until(lambda: not members.leaving())
        server.send("DELETED", slice_of("s2"))
        await until(lambda: not members.members())
        assert members.leaving()["b"].url == "http://10.0.0.2:8000"
        assert not members.deserted  # the other Service is there, without workers
        server.send("ADDED", slice_of("s2", ("b", "10.0.0.2", True)))
        await until(lambda: set(members.members()) == {"b"})
        assert not members.leaving()
        for name in ("s3", "s4"):
            server.send("ADDED", slice_of(name, (name, "10.0.0.9", True)))
            server.send("DELETED", slice_of(name))
        await until(lambda: set(members.leaving()) == {"s4"})  # as many as are remembered
        server.slices, server.list_status = [], 200
        server.send("ERROR", {"message": "gone"})
        await until(lambda: set(members.leaving()) == {"b"})


@pytest.mark.parametrize("how", ["status", "event"])
async def test_an_expired_watch_lists_again(tmp_path: Path, how: str) -> None:
    server = ApiServer()
    server.slices = [slice_of("s1", ("a", "10.0.0.1", True))]
    if how == "status":
        server.watch_status = 410
    else:
        server.send("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
    async with following(tmp_path, server) as members:
        await until(lambda: members.synced)
        server.slices = [slice_of("s1", ("b", "10.0.0.2", True))]
        await until(lambda: set(members.members()) == {"b"})
        assert server.lists == 2


async def test_while_the_api_server_fails_the_known_workers_stay(tmp_path: Path) -> None:
    server = ApiServer()
    server.slices = [slice_of("s1", ("a", "10.0.0.1", True))]
    async with following(tmp_path, server) as members:
        await until(lambda: members.synced)
        server.list_status = 500
        server.send("ERROR", {"message": "gone"})
        await until(lambda: server.lists >= 2)
        assert set(members.members()) == {"a"}
        server.list_status = 200
        server.slices = []
        await until(lambda: members.members() == {})


async def test_without_an_answer_it_is_not_synced(tmp_path: Path) -> None:
    server = ApiServer()
    server.list_status = 403
    async with following(tmp_path, server) as members:
        await until(lambda: server.lists >= 1)
        assert not members.synced


def test_no_word_about_being_ready_means_ready() -> None:
    assert set(members_of(slice_of("s", ("a", "10.0.0.1", None)))) == {"a"}
    content = slice_of("s", ("a", "10.0.0.1", True))
    content["endpoints"][0]["conditions"] = {"ready": None}
    assert set(members_of(content)) == {"a"}


async def test_a_watch_that_ends_at_once_is_not_repeated_without_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_WATCH_PAUSE_S", 60.0)
    server = ApiServer()
    async with following(tmp_path, server):
        for _ in range(5):
            server.end_watch()
        await until(lambda: len(server.watches) == 1)
        await asyncio.sleep(0.2)
        assert len(server.watches) == 1


async def test_a_deployment_without_services_is_deserted(tmp_path: Path) -> None:
    server = ApiServer()
    server.slices = [slice_of("s1"), slice_of("s2", ("b", "10.0.0.2", True))]
    async with following(tmp_path, server) as members:
        assert not members.deserted  # nobody knows yet
        await until(lambda: members.synced)
        server.send("DELETED", slice_of("s2"))
        await until(lambda: not members.members())
        assert not members.deserted
        server.send("DELETED", slice_of("s1"))
        await until(lambda: members.deserted)
