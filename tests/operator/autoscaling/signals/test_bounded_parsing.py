"""Tests that what strangers answer is read on threads, and for a bounded time."""

from __future__ import annotations

import threading
from itertools import count

from disagg_operator.autoscaling.signals.bounded_parsing import read_all


async def test_answers_are_read_on_threads_in_any_number() -> None:
    threads = set[int]()

    def read(text: str) -> int | None:
        threads.add(threading.get_ident())
        return int(text) if text else None

    answers = [(i, str(i)) for i in range(50)]
    found = await read_all([*answers, (50, None), (51, "")], read)
    assert found == {i: i for i in range(50)} | {50: None, 51: None}
    assert threads
    assert threading.get_ident() not in threads
    assert await read_all([], read) == {}


async def test_once_the_budget_is_used_up_nothing_more_is_read() -> None:
    ticks, read_of = count(), list[int]()

    def read(number: int) -> int:
        read_of.append(number)
        return number

    # Each look at the clock takes a second: some are read, and the rest counts as silent.
    found = await read_all([(i, i) for i in range(100)], read, 10.0, lambda: float(next(ticks)))
    assert len(found) == 100
    assert 1 <= len(read_of) <= 10
    assert [k for k, v in found.items() if v is not None] == read_of == list(range(len(read_of)))
