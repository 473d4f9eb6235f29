"""Responses that stream newline-delimited JSON, and the bridge from the engine's thread to the
event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from disagg_protocol.bodies import Line, Lines, encode_line, encoded
from disagg_protocol.events import Event
from disagg_wire import codes

log = logging.getLogger(__name__)
# The time that a peer gets beyond its own deadline to read the last line.
_GRACE_S = 5.0
# The key of a scope under which the server's own `send` is. The wrappers that an application lays
# around it care for the start of a response only, and would be called for each line.
SERVER_SEND = "disagg.send"


class EventQueue:
    """An EventSink that any thread may call and that is read on the event loop.

    It is bounded by the number of events that one request can emit.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self.put(event)

    def put(self, item: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:
            pass  # The loop has closed, so nobody listens any more.

    async def get(self, timeout_s: float) -> Any:
        """Return the next item. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()


class NdjsonResponse(Response):
    """A response that streams objects as lines.

    `close` is called once when it ends, whether by itself, by the peer or because of `deadline_s`.
    """

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncIterator[Line | Lines], close: Callable[[], None], deadline_s: float) -> None:
        """Stream `lines` until the monotonic time `deadline_s`, at which they end by themselves.

        A peer that does not read them is cut off shortly after.
        """
        super().__init__(headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._lines = lines
        self._close = close
        self._deadline_s = deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            send = scope.get(SERVER_SEND, send)
            tasks = [asyncio.create_task(self._pump(send)), asyncio.create_task(self._disconnected(receive))]
            timeout_s = self._deadline_s - time.monotonic() + _GRACE_S
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, send: Send) -> None:
        ended = False
        try:
            async for lines in self._lines:
                content, ended = encoded(lines) if isinstance(lines, dict) else lines
                await send({"type": "http.response.body", "body": content, "more_body": not ended})
            if ended:
                return
        except Exception:
            log.exception("a stream failed")
            if ended:
                return
            line = {
                "type": "error",
                "code": codes.INTERNAL,
                "message": "internal error; see the worker's log",
                "retryable": True,
            }
            await send({"type": "http.response.body", "body": encode_line(line), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @staticmethod
    async def _disconnected(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
