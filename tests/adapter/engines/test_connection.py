"""Tests of the connections to an engine, with a server that answers with the bytes of a test."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop
from tests.adapter.rig import until

from disagg_adapter.engines import connection as module
from disagg_adapter.engines.connection import Connection, Connections
from disagg_adapter.engines.contract import EngineFault
from disagg_adapter.engines.http_client import EngineAnswer, EngineHttp

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
HALLO = OK + b"content-length: 5\r\n\r\nhallo"
Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on uvloop too, as the adapter does: its transports differ once they are closed."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def once() -> None:
            await test(*args, **kwargs)

        for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(once())

    return run


class Server:
    """A server that answers each request on each connection in the same way."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self.open: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                self.requests.append(head + await reader.readexactly(int(length or 0)))
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def serving(*pieces: bytes, close: bool = False) -> AsyncIterator[tuple[Server, int]]:
    """Answer with these pieces, each in a packet of its own."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    server = Server(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listening:
        yield server, listening.sockets[0].getsockname()[1]
        for writer in list(server.open):
            writer.close()


async def whole(connection: Connection) -> tuple[int, bytes]:
    status, body = await connection.ask(REQUEST), b""
    while piece := await connection.read():
        body += piece
    return status, body


@pytest.mark.parametrize(
    ("pieces", "body"),
    [
        ((HALLO,), b"hallo"),
        (tuple(bytes([b]) for b in HALLO), b"hallo"),
        ((CHUNKED + b"2\r\nha\r\n", b"3\r\nllo\r\n", b"0\r\n\r\n"), b"hallo"),
        ((CHUNKED, b"5;a=b\r\nhal", b"lo\r\n0\r\nx: y\r\n\r\n"), b"hallo"),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", HALLO), b"hallo"),
        ((OK + b"content-length: 0\r\n\r\n",), b""),
        ((OK + b"content-length: 700000\r\n\r\n", *[b"x" * 100_000] * 7), b"x" * 700_000),
    ],
)
@on_both_loops
async def test_an_answer_is_read_and_the_connection_serves_the_next_request(
    pieces: tuple[bytes, ...], body: bytes
) -> None:
    async with serving(*pieces) as (server, port):
        pool = Connections("127.0.0.1", port)
        for _ in range(3):
            connection = await pool.take()
            assert await whole(connection) == (200, body)
            assert connection.reusable
            pool.give_back(connection)
        assert (server.connections, len(server.requests)) == (1, 3)
        pool.close()
        await until(lambda: not server.open)


@pytest.mark.parametrize(
    ("pieces", "close"),
    [
        ((OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhallo",), False),
        ((b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhallo",), False),
        ((OK + b"\r\nhal", b"lo"), True),
        ((HALLO + b"HTTP/1.1 200 OK\r\n",), False),
    ],
)
@on_both_loops
async def test_a_connection_that_the_engine_does_not_keep_is_closed(pieces: tuple[bytes, ...], close: bool) -> None:
    async with serving(*pieces, close=close) as (server, port):
        pool = Connections("127.0.0.1", port)
        connection = await pool.take()
        assert await whole(connection) == (200, b"hallo")
        pool.give_back(connection)
        await until(lambda: not server.open)
        assert not connection.reusable


@on_both_loops
async def test_a_connection_with_an_answer_that_nobody_read_serves_no_other_request() -> None:
    size = module._MAX_HELD_BYTES + 1  # so much that the reading has stopped
    async with serving(OK + b"content-length: %d\r\n\r\n" % size + b"x" * size) as (server, port):
        pool = Connections("127.0.0.1", port)
        connection = await pool.take()
        assert await connection.ask(REQUEST) == 200
        await until(lambda: connection._ended)
        pool.give_back(connection)
        following = await pool.take()
        assert following is not connection
        async with asyncio.timeout(30):
            assert await whole(following) == (200, b"x" * size)
        pool.give_back(following)
        pool.close()
        await until(lambda: not server.open)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((), "closed"),
        ((OK,), "closed"),
        ((OK + b"content-length: 6\r\n\r\nhallo",), "closed"),
        ((CHUNKED + b"5\r\nhallo\r\n",), "closed"),
        ((b"SMTP ready\r\n",), "no HTTP"),
        ((b"HTTP/1.1 101 Other\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",), "no HTTP"),
        ((CHUNKED + b"5\r\nhallo\r\nx\r\n",), "no HTTP"),
        ((OK, *[b"x: " + b"y" * 60_000 + b"\r\n"] * 5), "too long"),
        ((CHUNKED, b"0\r\n", *[b"x: " + b"y" * 60_000 + b"\r\n"] * 5), "too long"),
    ],
)
@on_both_loops
async def test_an_answer_that_breaks_off_or_is_none_is_an_error(pieces: tuple[bytes, ...], message: str) -> None:
    async with serving(*pieces, close=True) as (server, port):
        connection = await Connections("127.0.0.1", port).take()
        with pytest.raises(ConnectionError, match=message):
            await whole(connection)
        assert not connection.reusable
        connection.close()
        await until(lambda: not server.open)
        with pytest.raises(ConnectionError):
            await connection.ask(REQUEST)


@on_both_loops
async def test_what_nobody_reads_waits_at_the_engine() -> None:
    size = 32 << 20
    async with serving(OK + b"content-length: %d\r\n\r\n" % size, b"x" * size) as (_, port):
        connection = await Connections("127.0.0.1", port).take()
        assert await connection.ask(REQUEST) == 200
        await until(lambda: connection._held_bytes > module._MAX_HELD_BYTES)
        for _ in range(50):
            await asyncio.sleep(0)
        found = len(await connection.read())
        assert found <= 2 * module._MAX_HELD_BYTES
        while piece := await connection.read():
            found += len(piece)
        assert found == size
        connection.close()


@on_both_loops
async def test_what_the_engine_closed_in_the_meantime_is_not_taken() -> None:
    async with serving(HALLO) as (server, port):
        pool = Connections("127.0.0.1", port)
        first = await pool.take()
        await whole(first)
        pool.give_back(first)
        # Its end is here, and the event loop has not looked at it yet.
        number = server.open.pop().get_extra_info("socket").fileno()
        with socket.fromfd(number, socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.shutdown(socket.SHUT_RDWR)
        second = await pool.take()
        assert second is not first
        assert await whole(second) == (200, b"hallo")
        pool.give_back(second)
        pool.close()


@on_both_loops
async def test_an_idle_connection_is_closed_before_the_engine_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._IDLE_S < 5  # uvicorn's
    monkeypatch.setattr(module, "_IDLE_S", 0.01)
    async with serving(HALLO) as (server, port):
        pool = Connections("127.0.0.1", port)
        connection = await pool.take()
        await whole(connection)
        pool.give_back(connection)
        await until(lambda: not server.open)
        assert await pool.take() is not connection


@on_both_loops
async def test_a_client_that_is_closed_keeps_no_connection() -> None:
    async with serving(HALLO) as (server, port):
        pool = Connections("127.0.0.1", port)
        connection = await pool.take()
        await whole(connection)
        pool.close()
        pool.give_back(connection)
        await until(lambda: not server.open)


@on_both_loops
async def test_a_caller_who_leaves_closes_the_connection() -> None:
    async with serving() as (server, port):
        http = EngineHttp(f"http://127.0.0.1:{port}")
        with pytest.raises(EngineFault, match="TimeoutError"):
            await http.text("/", 0.05)
        await until(lambda: not server.open)
        asking = asyncio.create_task(http.json("/", 60, {"a": 1}))
        await until(lambda: any(request.startswith(b"POST") for request in server.requests))
        asking.cancel()
        await until(lambda: not server.open)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 413 No\r\n\r\ntoo big"])
@on_both_loops
async def test_an_engine_that_says_no_more_is_not_waited_for_until_it_has_read_the_request(answer: bytes) -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.write_eof()
        await left.wait()
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        http = EngineHttp(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        with pytest.raises((EngineFault, EngineAnswer), match="too big" if answer else "closed"):
            await http.send("/", "x" * (32 << 20), 5)
        left.set()


@on_both_loops
async def test_only_what_changes_nothing_is_asked_twice() -> None:
    async with serving(close=True) as (server, port):
        http = EngineHttp(f"http://127.0.0.1:{port}")
        for ask, times in ((http.text("/", 5), 2), (http.json("/", 5, {}), 1), (http.send("/", {}, 5), 1)):
            server.requests.clear()
            with pytest.raises(EngineFault, match="closed"):
                await ask
            assert len(server.requests) == times


@on_both_loops
async def test_a_request_has_its_body_its_key_and_the_name_of_the_engine() -> None:
    body = {"tokens": [1] * 200_000}
    async with serving(b"HTTP/1.1 429 No\r\ncontent-length: 14\r\n\r\n" + b'{"error":"no"}') as (server, port):
        http = EngineHttp(f"http://127.0.0.1:{port}", "the-key")
        with pytest.raises(EngineAnswer, match="HTTP 429: no"):
            await http.send("/path", body, 5)
        head, _, content = server.requests[0].partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /path HTTP/1.1"
        assert {f"host: 127.0.0.1:{port}", "authorization: Bearer the-key", "accept-encoding: identity"} < set(lines)
        assert len(content) == len('{"tokens":[]}') + 2 * 200_000 - 1
        await http.close()
    with pytest.raises(ValueError, match="no header"):
        await EngineHttp("http://127.0.0.1:1", "a\r\nb: c").text("/", 5)


@on_both_loops
async def test_an_answer_without_an_end_is_a_fault() -> None:
    async with serving(CHUNKED, *[b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"] * 17) as (_, port):
        with pytest.raises(EngineFault, match="too long"):
            await EngineHttp(f"http://127.0.0.1:{port}").text("/", 30)
