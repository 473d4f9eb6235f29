"""Clients that stop reading are cut off, and what they asked for ends: over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from aiohttp import web
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.types import ASGIApp
from tests.router.test_upstream import ASKED, STREAMED, scripted, split
from tests.wire.shapes import AMBIGUOUS, IN_CHUNKS, PLAIN

from disagg_router.openai.connections import ApiPort, connection_class
from disagg_router.openai.streaming import SseResponse
from disagg_wire.connection_guard import ConnectionLimits

LIMIT_S = 0.4
PIECE = b"x" * (64 << 10)


async def ask_and_never_read(url: str, body: bytes, method: str = "POST") -> socket.socket:
    """Send a request, and return the connection, of which nothing has been read."""
    address = httpx.URL(url)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, (address.host, address.port))
    head = f"{method} /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(sock, head.encode() + body)
    return sock


async def was_reset(sock: socket.socket) -> bool:
    """Read a connection to its end, and return whether it was cut."""
    loop = asyncio.get_running_loop()
    with sock:
        try:
            async with asyncio.timeout(10):
                while await loop.sock_recv(sock, 1 << 20):
                    pass
        except ConnectionResetError:
            return True
    return False


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await StarletteRequest(scope, receive).body()
    await Response(b"<" + body + b">")(scope, receive, send)


@asynccontextmanager
async def serving(
    app: ASGIApp, stalls: list[int], limit_s: float = LIMIT_S, connections: int = 100
) -> AsyncIterator[str]:
    """Serve an application; yields the URL. `stalls` gets an item for each client that is cut."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        http = connection_class(ApiPort(ConnectionLimits(connections, stall_s=limit_s), lambda: stalls.append(1)))
        config = uvicorn.Config(app, http=http, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[sock]))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        server.should_exit = True
        await running


@pytest.mark.parametrize("streamed", [True, False])
async def test_what_a_service_answers_to_nobody_ends_there_and_frees_the_place(tmp_path: Path, streamed: bool) -> None:
    ended = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            found = web.StreamResponse(headers={"content-type": "text/event-stream"} if streamed else {})
            await found.prepare(request)
            while True:
                await found.write(PIECE)
        finally:
            ended.set()

    async with scripted(answer) as url, split(tmp_path, url, client_stall_timeout_s=LIMIT_S) as stack:
        body = httpx.Request("POST", stack.url, json=STREAMED if streamed else ASKED).content
        sock = await ask_and_never_read(stack.url, body)
        await asyncio.wait_for(ended.wait(), 20)
        await stack.until(lambda: stack.router.active == 0)
        assert stack.router.upstream is not None
        assert stack.router.upstream._running == 0
        assert await stack.metric("disagg_router_stalled_clients_total") == 1
        assert await was_reset(sock)


async def test_events_for_nobody_end() -> None:
    closed, stalls = list[str](), list[int]()
    over = asyncio.Event()

    async def events() -> AsyncGenerator[dict[str, Any]]:
        try:
            while True:
                await asyncio.sleep(0)  # as everything that makes events waits at times
                yield {"text": "x" * 65_536}
        finally:
            closed.append("events")

    def close() -> None:
        closed.append("work")
        over.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await SseResponse({"text": ""}, events(), close)(scope, receive, send)

    async with serving(app, stalls) as url:
        sock = await ask_and_never_read(url, b"", "GET")
        await asyncio.wait_for(over.wait(), 20)
        assert (closed, stalls) == (["events", "work"], [1])
        assert await was_reset(sock)


async def test_a_whole_answer_that_nobody_reads_is_given_up() -> None:
    """The server is done with it at once; what is left lies in the buffer of the connection."""
    stalls: list[int] = []
    async with serving(Response(b"x" * (32 << 20)), stalls) as url:
        sock = await ask_and_never_read(url, b"", "GET")
        async with asyncio.timeout(20):
            while not stalls:
                await asyncio.sleep(0.01)
        assert await was_reset(sock)


async def test_a_client_that_reads_gets_all() -> None:
    stalls: list[int] = []
    async with serving(Response(b"x" * (32 << 20)), stalls, 60.0) as url, httpx.AsyncClient(trust_env=False) as http:
        for _ in range(2):  # over one connection
            assert len((await http.get(url, timeout=60)).content) == 32 << 20
    assert stalls == []


async def answers(address: httpx.URL, sent: bytes) -> bytes:
    """Send bytes over a connection of their own, and return all that comes back."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    async with asyncio.timeout(20):
        found = await reader.read()
    writer.close()
    return found


async def test_ambiguous_requests_are_refused() -> None:
    async with serving(Response(b"x"), []) as url:
        for name, sent in AMBIGUOUS.items():
            found = await answers(httpx.URL(url), sent)
            assert found.startswith(b"HTTP/1.1 400") or b"\r\n\r\nx" not in found, name


async def test_plain_requests_are_served_over_one_connection() -> None:
    """Also those that ask for another protocol, as some clients do with each request."""
    upgrade = PLAIN.replace(b"host: x", b"host: x\r\nconnection: upgrade\r\nupgrade: h2c")
    async with serving(echo, []) as url:
        found = await answers(httpx.URL(url), PLAIN + IN_CHUNKS + upgrade + PLAIN.replace(b"1.1", b"1.0"))
        assert found.count(b"HTTP/1.1 200") == 4
        assert found.count(b"<abc>") == 4


async def test_strangers_hold_no_place_that_somebody_needs() -> None:
    async with serving(echo, [], connections=8) as url:
        address = httpx.URL(url)
        held = [await asyncio.open_connection(address.host, address.port) for _ in range(20)]
        for _, writer in held:
            writer.write(b"POST / HTTP/1.1\r\n")
        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.post(url, content=b"abc")).content == b"<abc>"
        for _, writer in held:
            writer.close()
