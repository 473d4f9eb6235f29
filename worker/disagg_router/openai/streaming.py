"""Server-sent events, and several streams merged into one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")
# The number of items that one stream may be ahead of its reader.
_MAX_AHEAD = 64


async def while_connected(receive: Callable[[], Awaitable[Message]], work: Awaitable[T]) -> T:
    """Return the result of the work.

    If the client goes away first, the work is cancelled and ClientDisconnect is raised.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        both: list[asyncio.Future[Any]] = [task, left]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


class SseResponse(Response):
    """A response of `data: {json}` events, followed by `data: [DONE]` unless the last event is an
    error.

    `first` is sent at once. A client that goes away ends the iterator at once. However it ends, the
    events are closed and `close` is called once, even when nothing was sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: dict[str, Any], events: AsyncGenerator[dict[str, Any]], close: Callable[[], None]
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._pump(send))
        except ClientDisconnect:
            pass  # there is nobody to tell
        finally:
            await self._events.aclose()
            self._close()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": _event(self._first), "more_body": True})
        failed = False
        async for event in self._events:
            failed = "error" in event
            await send({"type": "http.response.body", "body": _event(event), "more_body": True})
        await send({"type": "http.response.body", "body": b"" if failed else b"data: [DONE]\n\n", "more_body": False})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


async def merge(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Yield (number of the stream, item) as items come.

    The first error of any stream is raised. After that, and at the end, all streams are closed.
    """
    queue: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(_MAX_AHEAD)

    async def pump(number: int, stream: AsyncGenerator[T]) -> None:
        try:
            async for item in stream:
                await queue.put((number, item))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)
        finally:
            await stream.aclose()

    tasks = [asyncio.create_task(pump(i, s)) for i, s in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
