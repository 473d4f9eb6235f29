"""Tests of connections of workers: on which no request comes, or one that is ambiguous."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests.connections import ended
from tests.wire.shapes import AMBIGUOUS, IN_CHUNKS, PLAIN

from disagg_protocol.patient_http import guarded
from disagg_protocol.process import QuietServer
from disagg_wire.connection_guard import ConnectionLimits, Port

SOON = ConnectionLimits(head_s=0.1, idle_s=0.3)


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@asynccontextmanager
async def connected(
    limits: ConnectionLimits = SOON,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    port = Port(limits)
    server = QuietServer(guarded(app, port, 1, log_level="critical", port=0, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving
        assert len(port.slots) == 0


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: x\r\n"])
async def test_a_connection_without_a_request_is_closed(sent: bytes) -> None:
    async with connected() as (reader, writer):
        writer.write(sent)
        assert await ended(reader)


async def test_a_second_head_without_end_is_cut_off_as_well() -> None:
    async with connected() as (reader, writer):
        writer.write(PLAIN)
        assert (await reader.readuntil(b"\r\n\r\n3")).startswith(b"HTTP/1.1 200")
        writer.write(b"POST / HTTP/1.1\r\n")
        assert await ended(reader)


@pytest.mark.parametrize("before", [b"", PLAIN])
async def test_a_head_without_end_is_cut_off(before: bytes) -> None:
    async with connected(ConnectionLimits()) as (reader, writer):
        if before:
            writer.write(before)
            await reader.readuntil(b"\r\n\r\n3")
        for _ in range(3):
            writer.write(b"POST / HTTP/1.1\r\na: " if _ == 0 else b"b" * (100 << 10))
            await asyncio.sleep(0)
        assert await ended(reader)


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with connected(ConnectionLimits(connections=0)) as (reader, _):
        assert await ended(reader)


async def test_long_bodies_and_later_requests_are_no_heads() -> None:
    async with connected(ConnectionLimits(head_s=0.1)) as (reader, writer):
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 100_000)
            await asyncio.sleep(0.15)  # longer than a head may take
            writer.write(b"x" * 100_000)
            assert (await reader.readuntil(b"200000")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("shape", [*AMBIGUOUS, "in chunks"])
async def test_ambiguous_requests_are_refused(shape: str) -> None:
    async with connected(ConnectionLimits()) as (reader, writer):
        writer.write(AMBIGUOUS.get(shape, IN_CHUNKS))
        assert (await reader.read()).startswith(b"HTTP/1.1 400")


async def test_no_connection_becomes_another_protocols() -> None:
    asks = (
        b"host: x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n"
    )
    async with connected(ConnectionLimits(idle_s=0.3)) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + asks + b"\r\n")
        assert b" 405 " in await reader.readline()
        await reader.read()
