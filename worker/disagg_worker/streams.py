"""Answers that are a stream of newline-delimited JSON, and the bridge from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from disagg_worker.engine.api import Event
from disagg_worker.requests import encode_line


class EventQueue:
    """An EventSink that may be called from any thread; read on the event loop. Bounded by what one request can emit."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self.put(event)

    def put(self, item: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            pass  # the loop has closed: nobody listens any more

    async def get(self, timeout_s: float) -> Any:
        """Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()


class NdjsonResponse(Response):
    """Streams objects as lines; a closed connection ends the iterator at once (its `finally` frees what it held)."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        work = asyncio.create_task(self._pump(send))
        gone = asyncio.create_task(self._disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _pump(self, send: Send) -> None:
        try:
            async for line in self._lines:
                await send({"type": "http.response.body", "body": encode_line(line), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._lines.aclose()  # type: ignore[attr-defined]

    @staticmethod
    async def _disconnected(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
