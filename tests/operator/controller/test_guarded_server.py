"""Tests of the operator's HTTP server: strangers hold nothing for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from tests.connections import ended

from disagg_operator.controller.guarded_server import GuardedServer
from disagg_wire.connection_guard import ConnectionLimits

GET = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def serving(limits: ConnectionLimits) -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="y")

    server = GuardedServer([web.get("/x", answer)], limits)
    port = await server.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(20):
            yield port
    finally:
        await server.stop()


@pytest.mark.parametrize("sent", [b"", GET[:20]])
async def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    async with serving(ConnectionLimits(head_s=0.1)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        assert await ended(reader)
        writer.close()


async def test_requests_are_served_one_after_the_other_until_none_comes() -> None:
    async with serving(ConnectionLimits(idle_s=0.3)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(GET)
            assert (await reader.readuntil(b"\r\n\r\ny")).startswith(b"HTTP/1.1 200")
        assert await ended(reader)
        writer.close()


async def test_strangers_hold_no_place_that_somebody_needs() -> None:
    async with serving(ConnectionLimits(connections=4)) as port, ClientSession() as http:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        async with http.get(f"http://127.0.0.1:{port}/x") as found:
            assert (found.status, await found.text()) == (200, "y")
        async with http.get(f"http://127.0.0.1:{port}/x/") as found:
            assert found.status == 404
        for _, writer in held:
            writer.close()
