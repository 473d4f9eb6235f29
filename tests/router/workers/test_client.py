"""Tests of the lines of a worker's stream."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.workers import client
from disagg_router.workers.worker_info import Worker


async def chunked(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\r", b"\n")), max_size=10))
async def test_lines_are_what_ends_in_a_line_feed_however_it_was_cut(chunks: list[bytes]) -> None:
    assert [line async for line in client._split(chunked(chunks))] == b"".join(chunks).split(b"\n")[:-1]


async def test_a_line_separator_inside_of_a_string_is_no_end_of_line() -> None:
    line = '{"message": "a\u2028b\x85c\x0bd"}'.encode()
    assert [line async for line in client._split(chunked([line + b"\n"]))] == [line]


async def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="too long"):
        async for _ in client._split(chunked([b"x" * 60, b"y" * 60])):
            pass


class _At:
    """The attributes of a worker that the client uses."""

    pod = incarnation = "p0"
    last_resort = False

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("status", "code", "message", "has_ticket", "retryable"),
    [
        (400, "invalid_request", "sampling.structured: no Lark", False, False),
        (400, "invalid_request", "sampling.structured: no Lark", True, False),
        (400, "ticket_refused", "ticket.mac: does not match", True, True),
        (400, "invalid_request", "ticket.mac: does not match", True, True),  # release 0.1.0
        (400, "invalid_request", "ticket: must be an object", False, False),
        (413, "prompt_too_long", "tokens: 9 of 8", False, False),
        (413, "prompt_too_long", "tokens: 9 of 8", True, True),  # the pools may have other limits
    ],
)
def test_after_a_ticket_only_what_another_pair_may_take_is_tried_again(
    status: int, code: str, message: str, has_ticket: bool, retryable: bool
) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    failure = client._refusal(cast(Worker, _At(1)), "prefill", status, body, has_ticket=has_ticket)
    assert isinstance(failure, AttemptFailed)
    assert (failure.reason, failure.retryable, str(failure)) == (code, retryable, message)


async def test_a_refusal_that_comes_in_pieces_is_read_whole() -> None:
    body = json.dumps({"error": {"code": "draining", "message": "it leaves"}}).encode()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:20])
        await writer.drain()
        for _ in range(50):  # client and server share the loop: the client reads the first piece in the meantime
            await asyncio.sleep(0)
        writer.write(body[20:])
        writer.close()

    speaks = client.WorkerClient("key")
    async with asyncio.timeout(10), await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        worker = cast(Worker, _At(server.sockets[0].getsockname()[1]))
        try:
            with pytest.raises(NoRoom, match="it leaves") as refused:
                async with speaks.stream(worker, "prefill", {}):
                    pass
        finally:
            await speaks.close()
    assert refused.value.reason == "draining"


async def _answer_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    line = b'{"type": "end"}\n'
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(line) + line)
    await writer.drain()
    writer.close()


async def test_a_connection_is_not_given_up_because_the_router_itself_stood_still() -> None:
    speaks = client.WorkerClient("key")

    async def read(worker: Worker) -> list[client.Line]:
        async with speaks.stream(worker, "prefill", {}) as lines:
            return [line async for line in lines]

    async with asyncio.timeout(30), await asyncio.start_server(_answer_end, "127.0.0.1", 0) as server:
        asked = asyncio.create_task(read(cast(Worker, _At(server.sockets[0].getsockname()[1]))))
        try:
            connect, connects = asyncio.get_running_loop().sock_connect, asyncio.Event()

            async def sock_connect(sock: socket.socket, address: object) -> None:
                connects.set()
                await connect(sock, address)  # type: ignore[arg-type]

            asyncio.get_running_loop().sock_connect = sock_connect  # type: ignore[method-assign]
            await connects.wait()
            time.sleep(2.2)
            assert await asked == [{"type": "end"}]
        finally:
            del asyncio.get_running_loop().sock_connect
            await speaks.close()


async def test_where_nobody_answers_a_connection_fails_soon() -> None:
    """A server that accepts nothing, and whose queue is full."""
    speaks = client.WorkerClient("key")
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for waits in (first, second):
            waits.setblocking(False)
            waits.connect_ex(silent.getsockname())
        try:
            with pytest.raises(AttemptFailed, match="ClientConnectorError") as failed:
                async with speaks.stream(cast(Worker, _At(silent.getsockname()[1])), "prefill", {}):
                    pass
        finally:
            await speaks.close()
    assert failed.value.retryable
