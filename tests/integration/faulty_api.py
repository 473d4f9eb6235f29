"""A reverse proxy in front of a real API server, which delays, swallows and refuses as it is told.

An operator that uses its kubeconfig meets the faults; the test itself speaks to the API server.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
from aiohttp import web
from tests.integration.apiserver import TOKEN, ApiServer
from tests.ports import free_port

from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

_HOP_BY_HOP = ("host", "accept-encoding", "connection", "transfer-encoding", "content-length", "content-encoding")


@dataclass(slots=True)
class Asked:
    """One request of the operator."""

    verb: str
    path: str
    query: dict[str, str]
    at_s: float
    """When it came, on the monotonic clock."""
    body: Obj = field(default_factory=dict)
    status: int = 0
    """The status of the answer; 0 while there is none."""

    @property
    def watches(self) -> bool:
        return self.query.get("watch") in ("true", "1")

    @property
    def writes(self) -> bool:
        return self.verb != "GET" and "dryRun" not in self.query and not self.path.endswith("/events")

    @property
    def lists_resources(self) -> bool:
        """Whether it is a part of the operator's full list, which comes with every resync."""
        if self.verb != "GET" or self.watches or "limit" not in self.query or not self.path.endswith("/pods"):
            return False
        return self.query.get("labelSelector") == LABEL_DEPLOYMENT  # that of a reconcile names the resource


async def _no_answer(_: Asked) -> web.Response | None:
    return None


async def _yes(_: Asked) -> bool:
    return True


async def _passes(_: int, __: Obj) -> bool:
    return True


def refusal(code: int, message: str = "for a test", after_s: int | None = None) -> web.Response:
    """Return an answer as an API server that is in trouble gives it."""
    headers = {} if after_s is None else {"Retry-After": str(after_s)}
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)


class FaultyApi:
    """The proxy. Its faults are functions, which a test replaces."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._real = server
        self._port = free_port()
        self._folder = folder
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._streams = 0
        self.asked: list[Asked] = []
        self.answer: Callable[[Asked], Awaitable[web.Response | None]] = _no_answer
        """Answers a request instead of the API server; with None, the API server is asked."""
        self.tells: Callable[[Asked], Awaitable[bool]] = _yes
        """Called once the API server has carried a request out; if false, the answer is lost."""
        self.passes: Callable[[int, Obj], Awaitable[bool]] = _passes
        """Called with the number of a watch and each of its events; if false, it is swallowed."""
        self.end_watches: Obj | None = None
        """The error with which the next event of each watch is replaced."""

    @property
    def server(self) -> ApiServer:
        """The API server as the operator sees it."""
        path = self._folder / f"faulty-{self._port}.kubeconfig"
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}],
            "users": [{"name": "t", "user": {"token": TOKEN}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
        }  # fmt: skip
        path.write_text(json.dumps(config))
        return replace(self._real, kubeconfig=path)

    @property
    def writes(self) -> list[Asked]:
        """The writes that were asked for, but for Events."""
        return [asked for asked in self.asked if asked.writes]

    @property
    def resyncs(self) -> int:
        """The number of full lists that were answered."""
        return sum(asked.lists_resources and asked.status == 200 for asked in self.asked)

    @property
    def watches(self) -> int:
        """The number of watches that were opened."""
        return self._streams

    def without_faults(self) -> None:
        self.answer, self.tells, self.passes, self.end_watches = _no_answer, _yes, _passes, None

    async def start(self) -> None:
        config = json.loads(self._real.kubeconfig.read_text())
        tls = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, read_bufsize=2**22)
        app = web.Application(client_max_size=2**22)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    async def stop(self) -> None:
        if self._runner is not None and self._session is not None:
            await self._session.close()
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        asked = Asked(request.method, request.path, dict(request.query), time.monotonic(), body)
        self.asked.append(asked)
        response = await self.answer(asked)
        if response is not None:
            asked.status = response.status
            return response
        assert self._session is not None
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
        headers["Accept-Encoding"] = "identity"
        url = f"{self._real.url}{request.raw_path}"
        timeout = aiohttp.ClientTimeout(total=None)
        async with self._session.request(
            request.method, url, headers=headers, data=raw or None, timeout=timeout
        ) as real:
            if asked.watches and real.status == 200:
                asked.status = 200
                return await self._stream(request, real)
            answer = web.Response(status=real.status, body=await real.read(), content_type="application/json")
            answer.headers.update({k: v for k, v in real.headers.items() if k == "Retry-After"})
        if not await self.tells(asked):
            return _cut(request)
        asked.status = answer.status
        return answer

    async def _stream(self, request: web.Request, real: aiohttp.ClientResponse) -> web.StreamResponse:
        self._streams += 1
        number = self._streams
        out = web.StreamResponse(headers={"Content-Type": "application/json"})
        await out.prepare(request)
        async for line in real.content:
            if self.end_watches is not None:
                await out.write(json.dumps({"type": "ERROR", "object": self.end_watches}).encode() + b"\n")
                return out
            if await self.passes(number, json.loads(line)):
                await out.write(line)
        return out


def _cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=502)


@contextlib.asynccontextmanager
async def faulty_api(server: ApiServer, folder: Path) -> AsyncIterator[FaultyApi]:
    """Run the proxy."""
    api = FaultyApi(server, folder)
    await api.start()
    try:
        yield api
    finally:
        await api.stop()
