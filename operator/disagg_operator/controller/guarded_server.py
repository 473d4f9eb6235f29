"""An aiohttp server whose connections are guarded: aiohttp itself waits for ever for a request."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from disagg_wire.connection_guard import ConnectionGuard, ConnectionLimits, Port

# Those who connect are the kubelet, Prometheus and people who ask for decisions.
LIMITS = ConnectionLimits(connections=256)


class _GuardedProtocol(asyncio.Protocol):
    """Passes all that happens on a connection on to aiohttp and to the guard."""

    def __init__(self, inner: asyncio.Protocol, guard: ConnectionGuard, guards: dict[object, ConnectionGuard]) -> None:
        self._inner = inner
        self._guard = guard
        self._guards = guards
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._guards[transport] = self._guard
        self._inner.connection_made(transport)
        if isinstance(transport, asyncio.Transport):
            self._guard.made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.lost()
        self._guards.pop(self._transport, None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()
        self._guard.paused()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
        self._guard.resumed()


class GuardedServer:
    """The server of some routes on one address."""

    def __init__(self, routes: list[web.RouteDef], limits: ConnectionLimits = LIMITS) -> None:
        self._guards: dict[object, ConnectionGuard] = {}
        self._port = Port(limits)
        app = web.Application(client_max_size=1024, middlewares=[self._guarded])
        app.add_routes(routes)
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
        self._listening: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port."""
        await self._runner.setup()
        loop, serving = asyncio.get_running_loop(), self._runner.server
        if serving is None:
            raise AssertionError("a runner that is set up has a server")

        def connected() -> asyncio.Protocol:
            return _GuardedProtocol(serving(), ConnectionGuard(self._port, loop), self._guards)

        self._listening = await loop.create_server(connected, host, port)
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._listening is not None:
            self._listening.close()
        await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        guard = self._guards.get(request.transport)
        if guard is None:
            return await handler(request)
        guard.head_came()
        guard.request_came()
        try:
            return await handler(request)
        finally:
            guard.answered()
