"""Clients that stop reading are cut off, and what they asked for ends: over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from aiohttp import web
from starlette.responses import Response
from starlette.types import ASGIApp
from tests.router.test_upstream import ASKED, STREAMED, scripted, split

from disagg_router.openai.connections import connection_class
from disagg_router.openai.streaming import SseResponse

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


@asynccontextmanager
async def serving(app: ASGIApp, stalls: list[int], limit_s: float = LIMIT_S) -> AsyncIterator[str]:
    """Serve an application; yields the URL. `stalls` gets an item for each client that is cut."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        http = connection_class(limit_s, lambda: stalls.append(1))
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


class Wire:
    """A transport and a loop whose time and buffer a test sets."""

    def __init__(self) -> None:
        self.now_s, self.left_bytes, self.aborted = 0.0, 0, False
        self.looks: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Any) -> Any:
        self.looks.append((self.now_s + delay_s, call))
        return self

    def cancel(self) -> None:
        self.looks.clear()

    def get_write_buffer_size(self) -> int:
        return self.left_bytes

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True

    def advance(self, until_s: float) -> None:
        while self.looks and self.looks[0][0] <= until_s:
            self.now_s, call = self.looks.pop(0)
            call()
        self.now_s = until_s


class Flow:
    def pause_writing(self) -> None:
        pass

    resume_writing = pause_writing


def connection(stalls: list[int]) -> tuple[Any, Wire]:
    wire = Wire()
    made = cast("Any", connection_class(60.0, lambda: stalls.append(1)))
    found = made.__new__(made)
    found.loop = found.transport = wire
    found.flow = Flow()
    return found, wire


def test_a_slow_client_is_not_cut_while_it_reads_something() -> None:
    stalls: list[int] = []
    found, wire = connection(stalls)
    wire.left_bytes = 80_000
    found.pause_writing()
    for second in range(50, 501, 50):
        wire.advance(second)
        wire.left_bytes -= 1
    wire.advance(560)
    assert not wire.aborted
    wire.advance(575)
    assert (wire.aborted, stalls) == (True, [1])
    assert wire.looks == []


def test_what_is_written_meanwhile_is_no_stall() -> None:
    found, wire = connection([])
    wire.left_bytes = 70_000
    found.pause_writing()
    wire.advance(59)
    found.resume_writing()
    wire.left_bytes = 90_000  # more has been written than the client has read
    found.pause_writing()
    wire.advance(110)
    assert not wire.aborted
    wire.left_bytes = 0
    wire.advance(130)
    assert (wire.aborted, wire.looks) == (False, [])  # nobody looks at a connection without data
    wire.left_bytes = 70_000
    found.pause_writing()
    wire.advance(189)
    assert not wire.aborted
    wire.advance(191)
    assert wire.aborted
