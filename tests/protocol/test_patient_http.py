"""Tests of connections on which no request comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from disagg_protocol.patient_http import PatientProtocol
from disagg_protocol.process import QuietServer

_MODULE = "disagg_protocol.patient_http"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    app = Starlette(routes=[Route("/", echo, methods=["POST"])])
    server = QuietServer(uvicorn.Config(app, http=PatientProtocol, log_level="warning", port=0, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: x\r\n"])
async def test_a_connection_without_a_request_is_closed(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{_MODULE}._HEAD_S", 0.1)
    async with connected() as (reader, writer):
        writer.write(sent)
        assert await ended(reader)


async def test_a_head_without_end_is_cut_off() -> None:
    async with connected() as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\n" + b"a: " + b"b" * (70 << 10))
        assert await ended(reader)


async def test_connections_beyond_the_limit_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{_MODULE}._MAX_CONNECTIONS", 0)
    async with connected() as (reader, _):
        assert await ended(reader)


async def test_long_bodies_and_later_requests_are_no_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{_MODULE}._HEAD_S", 0.1)
    async with connected() as (reader, writer):
        for _ in range(2):
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n" + b"x" * 100_000)
            await asyncio.sleep(0.15)  # longer than a head may take
            writer.write(b"x" * 100_000)
            assert (await reader.readuntil(b"200000")).startswith(b"HTTP/1.1 200")
