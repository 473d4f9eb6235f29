"""An operator works while it leads, and forgets what it knew when others may act."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from disagg_operator.controller.terms import after_restores, work_in_terms
from disagg_operator.kube.errors import Retry


class Chair:
    """A leadership that a test gives and takes, and what it has been told."""

    def __init__(self) -> None:
        self.given, self.taken = asyncio.Event(), asyncio.Event()
        self.told: list[str] = []
        self.works = asyncio.Event()

    async def gained(self) -> None:
        await self.given.wait()

    async def lost(self) -> None:
        await self.taken.wait()

    def write_within_s(self) -> float:
        return math.inf

    def refused(self) -> str | None:
        return None

    async def restored(self) -> None:
        await self.given.wait()
        self.given.clear()

    async def work(self) -> None:
        self.told.append("begins")
        self.works.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.told.append("stops")

    async def close(self) -> None:
        self.told.append("closed")

    def terms(self, work: Callable[[], Awaitable[None]] | None = None) -> asyncio.Task[None]:
        async def working() -> None:
            await (work or self.work)()

        return asyncio.create_task(
            work_in_terms(
                self, working, leads=lambda now: self.told.append("leads" if now else "leaves"),
                forget=lambda: self.told.append("forgets"), close=self.close,
            )
        )  # fmt: skip


TERM = ["leads", "begins", "leaves", "stops", "closed", "forgets"]


async def test_each_term_begins_anew() -> None:
    chair = Chair()
    running = chair.terms()
    await asyncio.sleep(0)
    assert chair.told == []
    for _ in range(2):
        chair.works.clear()
        chair.taken.clear()
        chair.given.set()
        await asyncio.wait_for(chair.works.wait(), 10)
        chair.given.clear()
        chair.taken.set()
        async with asyncio.timeout(10):
            while chair.told[-1] != "forgets":
                await asyncio.sleep(0)
    assert chair.told == TERM * 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert chair.told == TERM * 2


async def test_a_process_that_ends_keeps_what_is_still_to_be_saved() -> None:
    chair = Chair()
    chair.given.set()
    running = chair.terms()
    await asyncio.wait_for(chair.works.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert chair.told == TERM[:-1]


async def test_a_bug_ends_the_work_and_is_raised() -> None:
    async def fails() -> None:
        raise RuntimeError("a bug")

    chair = Chair()
    chair.given.set()
    with pytest.raises(RuntimeError, match="a bug"):
        await asyncio.wait_for(chair.terms(fails), 10)
    assert chair.told == ["leads", "leaves", "closed"]


async def test_after_a_restore_everything_is_listed_at_once_and_again_even_if_a_list_fails() -> None:
    chair, lists = Chair(), asyncio.Semaphore(0)

    async def resync() -> None:
        lists.release()
        raise Retry("away")

    running = asyncio.create_task(after_restores(chair, resync, (0.0, 0.0)))
    await asyncio.sleep(0)
    assert lists.locked()
    async with asyncio.timeout(10):
        for _ in range(2):
            chair.given.set()
            for _ in range(2):
                await lists.acquire()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert lists.locked()
