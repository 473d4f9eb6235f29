"""Streams that are read on when their reader has left: the engine does not survive a cancel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from disagg_adapter.engines.contract import Delta, EngineFault

Stream = AbstractAsyncContextManager[AsyncGenerator[Any]]
Parse = Callable[[Any], Delta | None]


async def deltas_of(events: AsyncGenerator[Any], parse: Parse) -> AsyncGenerator[Delta]:
    """Yield what the events of a stream say.

    Its last piece is held back until the stream has ended, which is at once: a connection that has
    been read to its end serves the next request.
    """
    last = None
    try:
        async for event in events:
            if last is None and (delta := parse(event)) is not None:
                if delta.finish_reason is not None:
                    last = delta
                else:
                    yield delta
    except EngineFault:
        if last is None:
            raise
    if last is not None:
        yield last


class KeptStreams:
    """The streams of one engine that nobody reads any more and that are not closed yet."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._keepers: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._keepers)

    def when_gone(self, name: str, then: Callable[[], None]) -> None:
        """Call `then` when the stream of this name is closed, which most are at once."""
        keeper = self._keepers.get(name)
        if keeper is None:
            then()
        else:
            keeper.add_done_callback(lambda _: then())

    async def read(self, name: str, stream: Stream, parse: Parse) -> AsyncGenerator[Delta]:
        """Yield the pieces of a stream, which has a name of its own.

        If the generator is closed before the first one, the stream is closed at the first one, or
        at its end, or when `longest_s` has passed. A task of its own reads up to there, so that a
        reader who is cancelled while he waits takes the stream with him no more than one who
        leaves.
        """
        opening = asyncio.create_task(_to_the_first(stream, parse))
        try:
            first, pieces = await asyncio.shield(opening)
        except asyncio.CancelledError:
            self._keep(name, stream, opening)
            raise
        try:
            if first is not None:
                yield first
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()
            await stream.__aexit__(None, None, None)

    def _keep(self, name: str, stream: Stream, opening: asyncio.Task[Any]) -> None:
        async def keep() -> None:
            # What the engine says to nobody is of no interest, not even its errors.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._longest_s):
                    await opening
                await stream.__aexit__(None, None, None)

        keeper = self._keepers[name] = asyncio.create_task(keep())
        keeper.add_done_callback(lambda _: self._keepers.pop(name, None))

    async def close(self) -> None:
        """Close all of them now."""
        keepers = list(self._keepers.values())
        await asyncio.sleep(0)  # one that has not begun yet would leave its stream open
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)


async def _to_the_first(stream: Stream, parse: Parse) -> tuple[Delta | None, AsyncGenerator[Delta]]:
    """Open a stream and return its first piece, if there is one, and the others."""
    pieces = deltas_of(await stream.__aenter__(), parse)
    try:
        return await anext(pieces, None), pieces
    except BaseException:
        await stream.__aexit__(None, None, None)
        raise
