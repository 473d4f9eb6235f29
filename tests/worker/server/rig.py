"""Workers with the real engine, a tiny random model and real sockets in the test's process, and a
client in the role of the router.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tests.protocol.client import HEADERS, KEY, Client, Line, body, tokens_of

from disagg_protocol.app import create_app
from disagg_protocol.process import QuietServer
from disagg_worker.main import load_node
from disagg_worker.server.worker import Worker
from disagg_worker.settings import Settings
from disagg_worker.values.engine_load import Load


@dataclass(frozen=True)
class Running(Client):
    """A worker that serves."""

    worker: Worker

    def load(self) -> Load:
        assert self.worker.node is not None
        return self.worker.node.engine.load()

    async def until(self, what: Callable[[Load], bool]) -> None:
        """Wait until the engine's load fulfils a condition."""
        deadline_s = time.monotonic() + 20
        while not what(self.load()):
            assert time.monotonic() < deadline_s, self.load()
            await asyncio.sleep(0.005)

    async def empty(self) -> None:
        """Check the invariant after everything: no block is held, and no request is counted."""
        async with asyncio.timeout(20):
            await self.worker.idle.wait()
        # The engine's thread removes what a closed connection leaves behind, including a queued
        # request without blocks.
        await self.until(
            lambda load: load.blocks_free == load.blocks_total and load.waiting_requests == load.running_requests == 0
        )
        assert self.worker.node is not None
        assert self.worker.node.listener._waiting == {}
        assert self.worker.node.listener._receiving == {}

    async def refused(self, role: str, body: Line) -> tuple[int, Line]:
        answer = await self.http.post(f"/internal/v1/{role}", json=body)
        return answer.status_code, answer.json()["error"]


def make_settings(role: str, folder: Path, **changes: Any) -> Settings:
    values = {
        "role": role,
        "model_uri": f"file://{folder}",
        "model_name": "tiny",
        "cluster_key_file": folder / "key",
        "kv_port": 0,
        "kv_cache_bytes": 64 << 20,
        "prefill_wait_s": 0.0,
    }
    return Settings.model_validate(values | changes)


@asynccontextmanager
async def serve(worker: Worker) -> AsyncIterator[httpx.AsyncClient]:
    """Run the worker's HTTP server on a real socket."""
    # Connections are kept for longer than clients keep them, as in production.
    server = QuietServer(
        uvicorn.Config(create_app(worker), log_level="warning", timeout_graceful_shutdown=1, timeout_keep_alive=75)
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=30, trust_env=False) as http:
                yield http
        finally:
            server.should_exit = True
            await task


@asynccontextmanager
async def running(role: str, folder: Path, **changes: Any) -> AsyncIterator[Running]:
    settings = make_settings(role, folder, **changes)
    worker = Worker(settings, KEY, f"{role}/boot")
    lost: list[str] = []
    await asyncio.to_thread(load_node, settings, KEY, worker, lost.append)
    assert worker.node is not None
    try:
        async with serve(worker) as http:
            yield Running(http, worker)
        assert lost == []
    finally:
        worker.node.listener.close()
        await asyncio.to_thread(worker.node.engine.stop, 5.0)


def prompt(n: int, start: int = 1) -> list[int]:
    return [1 + (start + 7 * i) % 96 for i in range(n)]


@dataclass(frozen=True)
class Pair:
    prefill: Running
    decode: Running
    bound: bool = True
    """Whether tickets are bound to the prefill worker, as today's routers ask for."""

    async def generate(self, request: Line) -> tuple[list[Line], list[Line]]:
        """Do what a router does: reserve, prefill with the ticket, read both streams."""
        end = {"prefill_incarnation": self.prefill.worker.incarnation} if self.bound else {}
        async with self.decode.call("decode", request | {"mode": "remote"} | end) as events:
            ticket = (await anext(events))["ticket"]
            first = await self.prefill.lines("prefill", request | {"ticket": ticket})
            return first, [line async for line in events]

    async def empty(self) -> None:
        await self.prefill.empty()
        await self.decode.empty()

    async def serves_the_next(self) -> None:
        """Check the invariant after every fault: the next request is served and nothing is held."""
        await self.empty()
        first, rest = await self.generate(body(prompt(40)))
        assert [first[-1], rest[-1]] == [
            {"type": "end", "finish_reason": "prefilled"},
            {"type": "end", "finish_reason": "length"},
        ]
        assert len(tokens_of(first + rest)) == 8
        await self.empty()


@asynccontextmanager
async def pair(folder: Path, **changes: Any) -> AsyncIterator[Pair]:
    bound = changes.pop("bound", True)
    async with contextlib.AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(running("prefill", folder, **changes))
        decode = await stack.enter_async_context(running("decode", folder, **changes))
        yield Pair(prefill, decode, bound)
