"""Server-sent events, and several streams merged into one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, TypeVar

from disagg_router.errors import ApiError
from disagg_router.openai.event_ids import Progress
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

    `first`, if there is one, is sent at once. With `progress`, which has counted the events, each
    has its id. However it ends, the events are closed and `close` is called once.
    """

    def __init__(
        self,
        first: dict[str, Any] | None,
        events: AsyncGenerator[dict[str, Any]],
        close: Callable[[], None],
        progress: Progress | None = None,
    ) -> None:
        async def ended() -> None:
            # If nothing was sent, no piece was asked for, and the events have not been closed.
            await events.aclose()
            close()

        super().__init__(200, _HEADERS, _pieces(first, events, progress), ended)


async def _pieces(
    first: dict[str, Any] | None, events: AsyncGenerator[dict[str, Any]], progress: Progress | None
) -> AsyncGenerator[bytes]:
    failed = False
    if first is not None:
        failed = "error" in first
        yield _event(first, progress)
    async for event in events:
        failed = "error" in event
        yield _event(event, progress)
    if not failed:
        yield b"data: [DONE]\n\n"


async def news(events: AsyncGenerator[dict[str, Any]], progress: Progress) -> AsyncGenerator[dict[str, Any]]:
    """Yield the events that the client has not got yet, and count all of them.

    Raises ApiError if it says that it has more than there are, unless some were news.
    """
    failed = False
    async with contextlib.aclosing(events):
        async for event in events:
            failed = "error" in event
            if progress.take(event):
                yield event
    if not failed:
        try:
            progress.check_end()
        except ApiError as error:
            if not progress.any_new:
                raise
            yield error.body()


def _event(content: dict[str, Any], progress: Progress | None) -> bytes:
    # An error is no part of what the client has got.
    counted = b"" if progress is None or "error" in content else b"id: %s\n" % progress.id().encode()
    return counted + b"data: " + json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


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
