"""Adapters with an engine in the test's process and real sockets, and a client in the role of the
router.
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
from starlette.applications import Starlette
from tests.fakes.adapter_engine import FakeEngine, token_of
from tests.protocol.client import HEADERS, KEY, Client, Line, body, tokens_of

from disagg_adapter.engines.contract import Engine
from disagg_adapter.model_folder import ModelFolder
from disagg_adapter.server import container_routes
from disagg_adapter.server.adapter import Adapter
from disagg_adapter.settings import Settings
from disagg_protocol.app import create_app
from disagg_protocol.process import QuietServer
from disagg_wire.protocol import TRANSFER_HEADER

FILES = ModelFolder("digest", 2048, (0,), None, 64, {"digest": "d"})


@dataclass(frozen=True)
class Running(Client):
    """An adapter that serves."""

    adapter: Adapter
    engine: FakeEngine

    async def until(self, what: Callable[[], bool]) -> None:
        await until(what)

    async def empty(self) -> None:
        """Check the invariant after everything: nothing is held, counted or expected."""
        async with asyncio.timeout(10):
            await self.adapter.idle.wait()
            await self.engine.idle.wait()
        ledger = self.adapter.ledger
        await until(lambda: ledger.free_blocks() == ledger.blocks and len(ledger) == 0)
        assert self.adapter.work_done.queued_prompts == 0
        assert self.adapter.door._expected == {}

    async def refused(self, role: str, body: Line) -> tuple[int, str, str]:
        answer = await self.http.post(f"/internal/v1/{role}", json=body)
        error = answer.json()["error"]
        return answer.status_code, error["code"], error["message"]

    async def hand_over(self, message: Any) -> httpx.Response:
        host, port = self.adapter.handover_address
        headers = {TRANSFER_HEADER: message["ticket"]["transfer_id"]}
        return await self.http.post(f"http://{host}:{port}/internal/v1/handover", json=message, headers=headers)

    async def samples(self) -> dict[str, float]:
        page = (await self.http.get("/metrics")).text
        pairs = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


async def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.002)


def make_settings(role: str, folder: Path, **changes: Any) -> Settings:
    values = {
        "role": role,
        "engine": "vllm",
        "model_uri": f"file://{folder}",
        "model_name": "tiny",
        "model_files": folder,
        "cluster_key_file": folder / "key",
        "poll_interval_s": 0.02,
    }
    return Settings.model_validate(values | changes)


class _Server(QuietServer):
    """A server that ends when it is told to, and not at its next look at the clock."""

    def __init__(self, app: Starlette) -> None:
        # Connections are kept for longer than clients keep them, as in production.
        super().__init__(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_keep_alive=75))
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        await self.ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()


@asynccontextmanager
async def listening(app: Starlette) -> AsyncIterator[tuple[str, int]]:
    """Serve an app on a real socket."""
    server = _Server(app)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        task = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            yield "127.0.0.1", sock.getsockname()[1]
        finally:
            server.ended.set()
            await task


def make_adapter(role: str, folder: Path, engine: Engine, **changes: Any) -> Adapter:
    adapter = Adapter(make_settings(role, folder, **changes), KEY, engine, f"{role}/boot")
    adapter.files = FILES
    return adapter


@asynccontextmanager
async def served(adapter: Adapter, engine: FakeEngine) -> AsyncIterator[Running]:
    """Serve an adapter whose monitor is not running yet."""
    app = create_app(adapter, container_routes.routes(adapter))
    async with listening(app) as (host, port), listening(adapter.door.app) as address:
        adapter.handover_address = address
        url = f"http://{host}:{port}"
        async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=30, trust_env=False) as http:
            try:
                yield Running(http, adapter, engine)
            finally:
                await adapter.sender.close()


@asynccontextmanager
async def running(role: str, folder: Path, engine: FakeEngine | None = None, **changes: Any) -> AsyncIterator[Running]:
    """Serve an adapter, and yield it when its engine serves."""
    engine = engine or FakeEngine()
    adapter = make_adapter(role, folder, engine, **changes)
    async with served(adapter, engine) as one:
        watch = asyncio.create_task(adapter.monitor.run())
        try:
            await until(lambda: adapter.serving)
            yield one
            assert not watch.done()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)


PROMPT = list(range(1, 41))
EXPECTED = [(n, token_of(PROMPT, n)) for n in range(8)]


@dataclass(frozen=True)
class Pair:
    prefill: Running
    decode: Running

    async def generate(self, request: Line) -> tuple[list[Line], list[Line]]:
        """Do what a router does: reserve, prefill with the ticket, read both streams."""
        async with self.decode.call("decode", request | {"mode": "remote"}) as events:
            ticket = await anext(events)
            first = await self.prefill.lines("prefill", request | {"ticket": ticket["ticket"]})
            return first, [ticket, *[line async for line in events]]

    async def empty(self) -> None:
        await self.prefill.empty()
        await self.decode.empty()

    async def serves_the_next(self) -> None:
        """Check the invariant after every fault: nothing is held, and the next one is served."""
        await self.empty()
        for engine in (self.prefill.engine, self.decode.engine):
            for gate in (engine.prefill_gate, engine.read_gate, engine.token_gate):
                gate.open()
        first, rest = await self.generate(body(PROMPT) | {"request_id": "next"})
        assert [line["type"] for line in first] == ["transferred", "end"]
        assert tokens_of(rest) == EXPECTED
        await self.empty()


@asynccontextmanager
async def pair(folder: Path, **changes: Any) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(running("prefill", folder, **changes))
        decode = await stack.enter_async_context(running("decode", folder, **changes))
        yield Pair(prefill, decode)
