"""Tests of streams that are read on when their reader has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from tests.adapter.engines.works import delta

from disagg_adapter.engines.contract import Delta, EngineFault
from disagg_adapter.engines.kept_stream import KeptStreams


class Source:
    """A stream whose events the test puts in."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.closed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[AsyncGenerator[Any]]:
        async def read() -> AsyncGenerator[Any]:
            self.asked.set()
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event

        try:
            yield read()
        finally:
            self.closed.set()


def parse(event: Any) -> Delta | None:
    return None if event == 0 else delta(event)


async def test_pieces_come_in_order_and_the_stream_is_closed() -> None:
    source, kept = Source(), KeptStreams(60)
    for event in (0, 5, 6, None):
        source.events.put_nowait(event)
    assert [d async for d in kept.read("one", source.open(), parse)] == [delta(5), delta(6)]
    await asyncio.wait_for(source.closed.wait(), 30)


async def test_an_error_reaches_the_reader() -> None:
    source, kept = Source(), KeptStreams(60)
    source.events.put_nowait(EngineFault("internal", "died"))
    with pytest.raises(EngineFault, match="died"):
        await anext(kept.read("one", source.open(), parse))


async def test_a_reader_who_leaves_after_the_first_piece_closes_the_stream() -> None:
    source, kept = Source(), KeptStreams(60)
    source.events.put_nowait(5)
    pieces = kept.read("one", source.open(), parse)
    assert await anext(pieces) == delta(5)
    await pieces.aclose()
    await asyncio.wait_for(source.closed.wait(), 30)


async def test_a_reader_who_is_cancelled_before_it_leaves_the_stream_open_until_it_comes() -> None:
    source, kept = Source(), KeptStreams(60)
    pieces = kept.read("one", source.open(), parse)
    waiting = asyncio.ensure_future(anext(pieces))
    await source.asked.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    await pieces.aclose()
    assert len(kept) == 1
    gone: list[str] = []
    kept.when_gone("one", lambda: gone.append("one"))
    kept.when_gone("another", lambda: gone.append("another"))
    assert gone == ["another"]
    source.events.put_nowait(0)  # Not a token yet.
    while not source.events.empty():
        await asyncio.sleep(0)
    assert not source.closed.is_set()
    source.events.put_nowait(5)
    await asyncio.wait_for(source.closed.wait(), 30)
    await kept.close()
    assert len(kept) == 0
    assert gone == ["another", "one"]


async def test_a_stream_is_not_kept_longer_than_its_limit() -> None:
    source, kept = Source(), KeptStreams(0.01)
    pieces = kept.read("one", source.open(), parse)
    waiting = asyncio.ensure_future(anext(pieces))
    await source.asked.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    await asyncio.wait_for(source.closed.wait(), 30)


async def test_all_are_closed_with_the_engine() -> None:
    source, kept = Source(), KeptStreams(60)
    waiting = asyncio.ensure_future(anext(kept.read("one", source.open(), parse)))
    for _ in range(5):
        await source.asked.wait()
    waiting.cancel()
    await asyncio.wait({waiting})
    await kept.close()
    assert source.closed.is_set()


async def test_a_stream_that_is_just_given_up_is_closed_too() -> None:
    source, kept = Source(), KeptStreams(60)
    waiting = asyncio.ensure_future(anext(kept.read("one", source.open(), parse)))
    await source.asked.wait()
    waiting.cancel()
    while not len(kept):
        await asyncio.sleep(0)
    await kept.close()
    assert source.closed.is_set()
    await asyncio.wait({waiting})
