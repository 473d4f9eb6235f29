"""Tests of the connections of a router that ends, whose clients must find another one in time."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

from tests.router.stack import MODEL, Stack, pair

from disagg_router.openai.connections import ApiPort
from disagg_wire.connection_guard import ConnectionLimits


def _request(path: str = "/v1/models", body: object = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: router\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _ask(stack: Stack, request: bytes) -> Connection:
    """Send a request on a new connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    writer.write(request)
    return reader, writer


async def _rest(connection: Connection) -> bytes:
    """Return all that comes until the router closes the connection."""
    reader, writer = connection
    async with asyncio.timeout(30):
        found = await reader.read()
    writer.close()
    return found


async def test_a_router_that_ends_closes_each_connection_with_its_answer(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.hold.clear()
        body = {"model": MODEL, "prompt": "hello", "max_tokens": 9, "seed": 5, "stream": True}
        stream = await _ask(stack, _request("/v1/completions", body))
        head = await stream[0].readuntil(b"data: ")
        assert (await stack.http.get("/v1/models")).headers.get("connection") is None
        stack._server.close_connections()
        assert b"connection: close" in (await _rest(await _ask(stack, _request()))).lower()
        assert (await stack.http.get("/v1/models")).headers["connection"] == "close"
        decode.hold.set()
        assert b"connection: close" not in head.lower()
        async with asyncio.timeout(30):
            await stream[0].readuntil(b"[DONE]\n\n\r\n0\r\n\r\n")
        # Its client asks again at once, before it could see that the connection is closed.
        stream[1].write(_request())
        assert b"connection: close" in (await _rest(stream)).lower()


async def test_the_time_of_grace_begins_anew_with_each_request_but_ends() -> None:
    port, clock = ApiPort(ConnectionLimits()), asyncio.get_running_loop().time
    port.asked_s = clock() + 0.1
    await port.until_unasked(0.05, 60.0)
    assert clock() >= port.asked_s + 0.05
    port.asked_s = math.inf
    await port.until_unasked(0.05, 0.1)
    port.asked_s = -math.inf
    await port.until_unasked(0.0, 60.0)
    await port.until_unasked(60.0, -1.0)


async def test_only_requests_for_answers_count(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        port = stack._server.port
        for path in ("/healthz", "/readyz", "/metrics"):
            await stack.http.get(path)
        assert port.asked_s == -math.inf
        await stack.http.get("/v1/models")
        assert math.isfinite(port.asked_s)
