"""Tests of the demand for workers that do not exist, for which the operator waits."""

from __future__ import annotations

import asyncio

import pytest

from disagg_router.admission.backlog import Backlog
from disagg_router.admission.demand import _MOST_POLLS, Demand
from disagg_router.admission.hold import Hold
from disagg_router.errors import ApiError

LONG_S = 60.0


async def _begun(demand: Demand, cursor: str) -> asyncio.Task[None]:
    """Return a poll that waits."""
    before = demand._polls
    task = asyncio.create_task(demand.until_asked(cursor, LONG_S))
    while demand._polls == before:
        await asyncio.sleep(0)
    return task


async def test_all_polls_are_answered_at_once_when_somebody_asks() -> None:
    demand = Demand()
    cursor = demand.cursor
    polls = [await _begun(demand, cursor) for _ in range(3)]
    assert not demand.is_news(cursor)
    demand.note()
    await asyncio.gather(*polls)
    assert demand.is_news(cursor)
    assert demand._polls == 0


async def test_what_happened_between_two_polls_is_news() -> None:
    demand = Demand()
    cursor = demand.cursor
    demand.note()
    await demand.until_asked(cursor, LONG_S)
    assert not demand.is_news(demand.cursor)


@pytest.mark.parametrize("cursor", ["", "x", "0123456789abcdef:7", "0123456789abcdef"])
async def test_a_cursor_of_another_process_is_no_news(cursor: str) -> None:
    demand = Demand()
    demand.note()
    assert not demand.is_news(cursor)
    await demand.until_asked(cursor, 0.0)


async def test_too_many_polls_are_answered_at_once() -> None:
    demand = Demand()
    polls = [await _begun(demand, "") for _ in range(_MOST_POLLS)]
    await demand.until_asked("", LONG_S)
    assert demand._polls == _MOST_POLLS
    demand.end()
    await asyncio.gather(*polls)


async def test_a_process_that_ends_keeps_no_poll() -> None:
    demand = Demand()
    poll = await _begun(demand, "")
    demand.end()
    await poll
    await demand.until_asked("", LONG_S)


async def _refusal(hold: Hold) -> int | None:
    with pytest.raises(ApiError) as refused:
        await hold.until(lambda: False, "m", 2, 0.0)
    return refused.value.retry_after_s


async def test_clients_come_back_when_workers_are_due() -> None:
    hold = Hold(Backlog(10, 1), 60.0)
    assert await _refusal(hold) == 5
    hold.cold_start_s = 95.4
    assert await _refusal(hold) == 96
    hold.cold_start_s = 1e6
    assert await _refusal(hold) == 3600


async def test_what_the_operator_does_not_know_the_router_has_measured() -> None:
    hold = Hold(Backlog(10, 1), 60.0)
    hold._took_s = 41.0
    assert await _refusal(hold) == 41
    waiting = asyncio.create_task(hold.until(lambda: False, "m", 1, 1e9))
    while not hold.waiting:
        await asyncio.sleep(0)
    hold._since_s -= 30.0  # the first of them waits for so long already
    assert await _refusal(hold) in (10, 11)
    waiting.cancel()


async def test_the_time_that_workers_took_is_that_of_the_first_who_waited() -> None:
    hold, ready = Hold(Backlog(10), 60.0), asyncio.Event()
    waiting = [asyncio.create_task(hold.until(ready.is_set, "m", 1, 1e9)) for _ in range(2)]
    while hold.waiting < 2:
        await asyncio.sleep(0)
    hold._since_s -= 30.0
    ready.set()
    hold.recheck()
    await asyncio.gather(*waiting)
    assert hold._took_s is not None
    assert 30.0 <= hold._took_s < 40.0
