"""Reads what strangers have answered: on threads, and for each of them for a bounded time.

Whoever answers decides how long it takes to read. On the event loop, that would hold up the
operator's work for everybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

# Some hundred pages of workers and routers take less than this.
BUDGET_S = 2.0
# Of one resource, some pages are read on a thread at a time, so that others get theirs.
_AT_A_TIME = 16


async def read_all(
    answers: Iterable[tuple[K, V | None]],
    read: Callable[[V], T | None],
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.monotonic,
) -> Mapping[K, T | None]:
    """Return what `read` makes of each answer of one resource.

    It is None for what is no answer, and for all that is left once the budget is used up.
    """
    left = list(answers)
    found: dict[K, T | None] = {}

    def some(part: list[tuple[K, V | None]], left_s: float) -> float:
        began_s = clock()
        for key, answer in part:
            late = clock() - began_s >= left_s
            found[key] = None if answer is None or late else read(answer)
        return clock() - began_s

    for at in range(0, len(left), _AT_A_TIME):
        budget_s -= await asyncio.to_thread(some, left[at : at + _AT_A_TIME], budget_s)
    return found
