"""Streams that are read on when their reader has left: the engine does not survive a cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from disagg_adapter.engines.contract import Delta

Stream = AbstractAsyncContextManager[AsyncGenerator[Any]]


class KeptStreams:
    """The streams of one engine that nobody reads any more and that are not closed yet."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._keepers: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._keepers)

    async def read(self, stream: Stream, parse: Callable[[Any], Delta | None]) -> AsyncGenerator[Delta]:
        """Yield the pieces of a stream.

        If the generator is closed before the first one, the stream is closed at the first one, or
        at its end, or when `longest_s` has passed. A task of its own reads, so that a reader who is
        cancelled while he waits takes the stream with him no more than one who leaves.
        """
        pieces: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        begun = asyncio.Event()

        async def pump() -> None:
            try:
                async with stream as events:
                    async for event in events:
                        if (delta := parse(event)) is not None:
                            pieces.put_nowait(delta)
                            begun.set()
                pieces.put_nowait(None)
            except Exception as error:
                pieces.put_nowait(error)
            finally:
                begun.set()

        pumping = asyncio.create_task(pump())
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self._close(pumping, begun)

    def _close(self, pumping: asyncio.Task[None], begun: asyncio.Event) -> None:
        if begun.is_set():
            pumping.cancel()

        async def keep() -> None:
            try:
                async with asyncio.timeout(self._longest_s):
                    await begun.wait()
            except TimeoutError:
                pass
            finally:
                pumping.cancel()
                await asyncio.wait({pumping})

        keeper = asyncio.create_task(keep())
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)

    async def close(self) -> None:
        """Close all of them now."""
        for keeper in list(self._keepers):
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
