"""Tests of the queue: its order, its bound, and that requests are woken one at a time.

Properties that hold for any order are tested for both.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from disagg_router.admission import waiting_queue
from disagg_router.admission.backlog import Backlog
from disagg_router.admission.turn_order import Turn
from disagg_router.admission.waiting_queue import AdmissionQueue
from disagg_router.errors import ApiError


@pytest.fixture(params=[0.0, 20.0], ids=["first come first served", "earliest deadline"])
def patience_s(request: pytest.FixtureRequest) -> float:
    return float(request.param)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_only_the_oldest_is_woken_whatever_the_order_of_entering(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """Each wake counts, also one that comes while the next is being told that it is now the
    oldest.
    """
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, patience_s)
    turns = [queue.turn() for _ in range(4)]
    out: list[Turn] = []

    async def one(turn: Turn) -> None:
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


async def test_room_that_appears_while_the_oldest_asks_is_kept_for_it(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    """The oldest asked a moment too early and was refused.

    A request that asks a moment later must not be served before it.
    """
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, patience_s)
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
    async with asyncio.timeout(30):
        await queue.wait(first, "decode", now_s, returning=True)  # refused, and asks again at once
        queue.gone(first)
        await waits


async def test_who_waited_before_is_not_pushed_out_by_newcomers(patience_s: float) -> None:
    queue = AdmissionQueue(Backlog(1), 60.0, patience_s)
    old = queue.turn()
    newcomer = asyncio.create_task(queue.wait(queue.turn(), "decode", time.monotonic()))
    await settle()
    async with asyncio.timeout(30):
        await queue.wait(old, "decode", time.monotonic(), returning=True)
    newcomer.cancel()
    await asyncio.gather(newcomer, return_exceptions=True)


async def test_without_any_sign_the_oldest_tries_again_after_a_while(patience_s: float) -> None:
    queue = AdmissionQueue(Backlog(10), 60.0, patience_s)
    async with asyncio.timeout(30):
        await asyncio.gather(*(queue.wait(queue.turn(), "prefill", time.monotonic()) for _ in range(3)))


async def test_a_full_queue_refuses_and_who_waited_too_long_is_told(patience_s: float) -> None:
    queue = AdmissionQueue(Backlog(1), 60.0, patience_s)
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


async def test_when_the_oldest_gives_up_the_next_takes_its_place(patience_s: float) -> None:
    queue = AdmissionQueue(Backlog(10), 60.0, patience_s)
    old, young = queue.turn(), queue.turn()
    tasks = [asyncio.create_task(queue.wait(t, "decode", time.monotonic())) for t in (old, young)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert not queue.crowded(young)
    queue.wake()
    async with asyncio.timeout(30):
        await tasks[1]


def due_in(queue: AdmissionQueue, limit_s: float) -> Turn:
    turn = queue.turn()
    return replace(turn, due_s=turn.arrived_s + limit_s)


async def line_up(queue: AdmissionQueue, *turns: Turn) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(queue.wait(t, "decode", time.monotonic())) for t in turns]
    await settle()
    return tasks


async def test_the_first_to_be_woken_is_who_can_be_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    late, later, sooner = (due_in(queue, s) for s in (-1.0, 50.0, 40.0))
    tasks = await line_up(queue, late, later, sooner)
    for task, turn in zip((tasks[2], tasks[1], tasks[0]), (sooner, later, late), strict=True):
        assert not queue.crowded(turn)
        queue.wake()
        async with asyncio.timeout(30):
            await task
        assert sum(t.done() for t in tasks) == [sooner, later, late].index(turn) + 1
        queue.settled(turn)


async def test_who_becomes_late_while_it_is_the_first_lets_the_next_one_try_without_any_sign() -> None:
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    soon_late, on_time = due_in(queue, waiting_queue._RETRY_S / 2), due_in(queue, 50.0)
    tasks = await line_up(queue, soon_late, on_time)
    async with asyncio.timeout(30):
        await tasks[1]
        assert not tasks[0].done()
        await tasks[0]


async def test_a_newcomer_that_goes_before_those_who_wait_is_not_overtaken_by_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Room that appears while it asks is kept for it, as for a request that waited."""
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    assert queue.idle
    late = due_in(queue, -1.0)
    (waits,) = await line_up(queue, late)
    newcomer, second = due_in(queue, 40.0), due_in(queue, 50.0)
    assert not queue.idle
    assert queue.enter(newcomer)
    assert not queue.enter(second)
    queue.wake()
    await settle()
    assert not waits.done()
    async with asyncio.timeout(30):
        await queue.wait(newcomer, "decode", time.monotonic())  # refused, and asks again at once
        queue.settled(newcomer)
        await waits


async def test_who_has_waited_for_the_patience_is_before_who_can_be_on_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    old = replace(due_in(queue, -20.0), arrived_s=time.monotonic() - 31.0)
    tasks = await line_up(queue, old, due_in(queue, 50.0))
    newcomer = due_in(queue, 1.0)
    assert not queue.enter(newcomer)
    assert queue.scarce() == "decode"
    queue.wake()
    async with asyncio.timeout(30):
        await tasks[0]
    assert not tasks[1].done()
    queue.gone(old)
    async with asyncio.timeout(30):
        await tasks[1]


async def test_room_for_one_that_leaves_before_it_tries_is_for_the_next(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, patience_s)
    tasks = await line_up(queue, queue.turn(), queue.turn())
    queue.wake()
    tasks[0].cancel()
    async with asyncio.timeout(30):
        await tasks[1]


async def test_room_for_one_that_is_overtaken_before_it_tries_is_for_who_overtook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    (waits,) = await line_up(queue, due_in(queue, 50.0))
    overtakes = asyncio.create_task(queue.wait(due_in(queue, 40.0), "decode", time.monotonic()))
    queue.wake()  # `waits` is the first, and `overtakes` runs before it
    async with asyncio.timeout(30):
        await overtakes
    assert not waits.done()
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)


async def test_only_who_waited_takes_the_turn_of_those_that_wait_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a request that got its place long ago does not count as a turn."""
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    queue = AdmissionQueue(Backlog(10), 60.0, 20.0)
    ends = due_in(queue, 1.0)
    queue.settled(ends)
    long_s = time.monotonic() - 25.0
    olds = [replace(due_in(queue, -20.0), arrived_s=long_s) for _ in range(2)]
    tasks = await line_up(queue, *olds, due_in(queue, 50.0))
    async with asyncio.timeout(30):
        queue.wake()
        await tasks[0]
        queue.settled(olds[0])
        queue.settled(ends)  # its end makes room
        await tasks[2]
    assert not tasks[1].done()
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
