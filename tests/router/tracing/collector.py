"""A collector that takes OTLP over HTTP on a real socket, and fails on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Collected:
    """What has come."""

    url: str = ""
    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    raw: bytes = b""
    answers: list[int] = field(default_factory=list)
    """The statuses of the next answers; then 200."""
    refuses: int = 0
    """How many spans of each message it says it has refused."""
    silent: bool = False
    """Whether it answers nothing."""
    came: asyncio.Event = field(default_factory=asyncio.Event)

    def named(self, name: str) -> list[Any]:
        """Return the spans with a name, the earliest first."""
        return sorted((s for s in self.spans if s.name == name), key=lambda s: s.start_time_unix_nano)

    async def until(self, name: str, count: int = 1) -> list[Any]:
        """Return the spans with a name once there are so many."""
        async with asyncio.timeout(60):
            while len(found := self.named(name)) < count:
                self.came.clear()
                await self.came.wait()
        return found


def attributes(of: Any) -> dict[str, Any]:
    """Return the attributes of a span or of a resource."""
    return {a.key: _plain(a.value) for a in of.attributes}


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@asynccontextmanager
async def collector(tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Collected]:
    """Run a collector."""
    found = Collected()

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        found.headers.append({name.lower(): value for name, value in request.headers.items()})
        if found.silent:
            await asyncio.sleep(60)
        status = found.answers.pop(0) if found.answers else 200
        if status == 200:
            found.raw += body
            for traced in ExportTraceServiceRequest.FromString(body).resource_spans:
                found.resources.append(attributes(traced.resource))
                found.spans += [span for scoped in traced.scope_spans for span in scoped.spans]
        found.came.set()
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = found.refuses
        return web.Response(body=answer.SerializeToString(), status=status, content_type="application/x-protobuf")

    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls)
    await site.start()
    address = runner.addresses[0]
    found.url = f"{'http' if tls is None else 'https'}://{'127.0.0.1' if tls is None else 'localhost'}:{address[1]}"
    try:
        yield found
    finally:
        await runner.cleanup()
