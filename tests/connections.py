"""Connections of tests: servers in the test's process, and what their clients see."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


@asynccontextmanager
async def serving(
    *routes: web.RouteDef,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    most_bytes: int = 1 << 20,
    **options: Any,
) -> AsyncIterator[int]:
    """Serve routes until the block ends, and yield the port: a free one, if none is given."""
    app = web.Application(client_max_size=most_bytes)
    app.add_routes(routes)
    runner = web.AppRunner(app, access_log=None, **options)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=tls).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def ended(reader: asyncio.StreamReader) -> bool:
    """Return whether the server ends the connection without another byte."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
