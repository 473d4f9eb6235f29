"""The queue: in order, bounded, woken one at a time."""

from __future__ import annotations

import asyncio
import time

import pytest

from disagg_router import admission
from disagg_router.admission import AdmissionQueue
from disagg_router.errors import ApiError


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_only_the_oldest_is_woken_whatever_the_order_of_entering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wake counts, also one that comes while the next is being told that it is the oldest now."""
    monkeypatch.setattr(admission, "_RETRY_S", 60.0)
    queue = AdmissionQueue(10, 60.0)
    turns = [queue.turn() for _ in range(4)]
    out: list[int] = []

    async def one(turn: int) -> None:
        await queue.wait(turn, "decode", time.monotonic())
        out.append(turn)

    tasks = [asyncio.create_task(one(t)) for t in (turns[2], turns[0], turns[3], turns[1])]
    await settle()
    assert queue.crowded(turns[1])
    assert not queue.crowded(turns[0])
    for n in range(1, 5):
        if n == 1:
            queue.wake()
        else:
            queue.settled(turns[n - 2])
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        tasks = [t for t in tasks if not t.done()]
        assert out == turns[:n]
    assert queue.waiting("decode") == 0


async def test_room_that_appears_while_the_oldest_asks_is_kept_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asked a moment too early and was refused: whoever asks a moment later must not be served before it."""
    monkeypatch.setattr(admission, "_RETRY_S", 60.0)
    queue = AdmissionQueue(10, 60.0)
    first, second = queue.turn(), queue.turn()
    now_s = time.monotonic()
    asks, waits = (asyncio.create_task(queue.wait(t, "decode", now_s)) for t in (first, second))
    await settle()
    queue.wake()
    await asks
    assert queue.crowded(queue.turn())
    queue.wake()
    await settle()
    assert not waits.done()
    async with asyncio.timeout(5):
        await queue.wait(first, "decode", now_s, returning=True)  # refused, and asked again at once
        queue.gone(first)
        await waits


async def test_who_waited_before_is_not_pushed_out_by_newcomers() -> None:
    queue = AdmissionQueue(1, 60.0)
    old = queue.turn()
    newcomer = asyncio.create_task(queue.wait(queue.turn(), "decode", time.monotonic()))
    await settle()
    async with asyncio.timeout(5):
        await queue.wait(old, "decode", time.monotonic(), returning=True)
    newcomer.cancel()
    await asyncio.gather(newcomer, return_exceptions=True)


async def test_without_any_sign_the_oldest_tries_again_after_a_while() -> None:
    queue = AdmissionQueue(10, 60.0)
    async with asyncio.timeout(5):
        await asyncio.gather(*(queue.wait(queue.turn(), "prefill", time.monotonic()) for _ in range(3)))


async def test_a_full_queue_refuses_and_who_waited_too_long_is_told() -> None:
    queue = AdmissionQueue(1, 60.0)
    first = asyncio.create_task(queue.wait(queue.turn(), "prefill", time.monotonic()))
    await settle()
    with pytest.raises(ApiError) as full:
        await queue.wait(queue.turn(), "decode", time.monotonic())
    assert (full.value.status, full.value.retry_after_s) == (429, 1)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert queue.waiting("prefill") == 0
    with pytest.raises(ApiError) as late:
        await queue.wait(queue.turn(), "decode", time.monotonic() - 61.0)
    assert (late.value.status, late.value.retry_after_s) == (503, 5)
    assert queue.waiting("decode") == 0


async def test_when_the_oldest_gives_up_the_next_takes_its_place() -> None:
    queue = AdmissionQueue(10, 60.0)
    old, young = queue.turn(), queue.turn()
    tasks = [asyncio.create_task(queue.wait(t, "decode", time.monotonic())) for t in (old, young)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert not queue.crowded(young)
    queue.wake()
    async with asyncio.timeout(5):
        await tasks[1]
