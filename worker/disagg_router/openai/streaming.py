"""Server-sent events, and several streams merged into one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from disagg_router.openai.pumped_response import PumpedResponse

T = TypeVar("T")
# The number of items that one stream may be ahead of its reader.
_MAX_AHEAD = 64
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


class SseResponse(PumpedResponse):
    """A response of `data: {json}` events, followed by `data: [DONE]` unless the last event is an
    error.

    `first` is sent at once. However it ends, the events are closed and `close` is called once.
    """

    def __init__(
        self, first: dict[str, Any], events: AsyncGenerator[dict[str, Any]], close: Callable[[], None]
    ) -> None:
        async def ended() -> None:
            # If nothing was sent, no piece was asked for, and the events have not been closed.
            await events.aclose()
            close()

        super().__init__(200, _HEADERS, _pieces(first, events), ended)


async def _pieces(first: dict[str, Any], events: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    yield _event(first)
    failed = False
    async for event in events:
        failed = "error" in event
        yield _event(event)
    if not failed:
        yield b"data: [DONE]\n\n"


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
