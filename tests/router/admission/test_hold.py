"""Tests of requests that wait for a model: how many, how large, how long."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from disagg_router.admission.backlog import Backlog
from disagg_router.admission.hold import Hold
from disagg_router.admission.queues import Queues
from disagg_router.errors import ApiError


class Door:
    """Something that requests wait for."""

    def __init__(self, backlog: Backlog, max_wait_s: float = 60.0) -> None:
        self.open = False
        self.ended = Counter[str]()
        self.hold = Hold(backlog, max_wait_s, lambda outcome: self.ended.update([outcome]))

    def enter(
        self, size_bytes: int = 1, since_s: float | None = None, *, returning: bool = False
    ) -> asyncio.Task[None]:
        now_s = time.monotonic()
        waits = self.hold.until(
            lambda: self.open, "m", size_bytes, now_s if since_s is None else since_s,
            deadline_s=now_s + 30, returning=returning,
        )  # fmt: skip
        return asyncio.ensure_future(waits)

    async def waits_for(self, n: int) -> None:
        while self.hold.waiting != n:
            await asyncio.sleep(0)


async def test_all_go_on_when_it_is_there_and_none_before() -> None:
    door = Door(Backlog(10))
    tasks = [door.enter() for _ in range(3)]
    await door.waits_for(3)
    door.hold.recheck()
    await asyncio.sleep(0)
    await door.waits_for(3)
    door.open = True
    door.hold.recheck()
    await asyncio.gather(*tasks)
    assert (door.hold.waiting, door.ended) == (0, {"served": 3})
    await door.enter()  # it need not wait, which is not counted
    assert door.ended == {"served": 3}


@pytest.mark.parametrize(("requests", "size_bytes"), [(1, 1000), (100, 10)])
async def test_their_number_and_their_size_are_bounded(requests: int, size_bytes: int) -> None:
    backlog = Backlog(requests, size_bytes)
    door = Door(backlog)
    first = door.enter(10)
    await door.waits_for(1)
    with pytest.raises(ApiError) as refused:
        await door.enter(10)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "starting", 5)
    back = door.enter(10, returning=True)  # one that has waited before is not pushed out
    await door.waits_for(2)
    first.cancel()
    back.cancel()
    await asyncio.gather(first, back, return_exceptions=True)
    assert (backlog.requests, backlog.size_bytes, door.ended) == (0, 0, {"refused": 1, "cancelled": 2})


async def test_the_longest_wait_counts_from_the_arrival_of_the_request() -> None:
    door = Door(Backlog(10))
    with pytest.raises(ApiError) as late:
        await door.enter(since_s=time.monotonic() - 60.0)
    assert (late.value.status, late.value.code, late.value.retry_after_s) == (503, "starting", 5)
    with pytest.raises(ApiError) as late:
        await door.hold.until(lambda: False, "m", 1, time.monotonic(), deadline_s=0.0)
    assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    assert door.ended == {"expired": 2}


async def test_all_queues_share_one_bound_and_exist_as_long_as_somebody_uses_them() -> None:
    backlog = Backlog(2)
    queues = Queues(backlog, Hold(backlog, 60.0), 60.0, 0.0)
    with queues.queue("a") as one, queues.queue("b") as other, queues.queue("a") as same:
        assert one is same is not other
        turns = [one.turn(), other.turn(), other.turn()]
        assert len({t.number for t in turns}) == 3
        waits = [
            asyncio.ensure_future(q.wait(t, pool, 1e9, size_bytes=5))
            for q, t, pool in ((one, turns[0], "decode"), (other, turns[1], "prefill"))
        ]
        while backlog.requests < 2:
            await asyncio.sleep(0)
        assert (queues.waiting("decode"), queues.waiting("prefill"), backlog.size_bytes) == (1, 1, 10)
        with pytest.raises(ApiError) as full:
            await other.wait(turns[2], "prefill", 1e9)
        assert full.value.status == 429
        queues.wake()  # the first of each may try
        await asyncio.gather(*waits)
    with queues.queue("a") as fresh:
        assert fresh is not one
