"""The queue in front of full pools: bounded, first come first served, every wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

from disagg_router.errors import ApiError

# Room can appear without a sign to this router (another router's request ended): the oldest tries again this often.
_RETRY_S = 0.1


@dataclass(order=True, slots=True)
class _Waiter:
    turn: int
    pool: str = field(compare=False)
    woken: asyncio.Event = field(default_factory=asyncio.Event, compare=False)


class AdmissionQueue:
    """Requests that found no room wait here, in order of arrival whatever pool they wait for."""

    def __init__(self, max_depth: int, max_wait_s: float) -> None:
        self._max_depth = max_depth
        self._max_wait_s = max_wait_s
        self._turns = itertools.count()
        self._heap: list[_Waiter] = []
        self._waiting: Counter[str] = Counter()

    def turn(self) -> int:
        """A place in the order, kept over all of a request's waits."""
        return next(self._turns)

    def waiting(self, pool: str) -> int:
        return self._waiting[pool]

    def crowded(self, turn: int) -> bool:
        """Somebody came before this turn and still waits: trying now would be jumping the queue."""
        return bool(self._heap) and self._heap[0].turn < turn

    def wake(self) -> None:
        """Something ended: the oldest may try."""
        if self._heap:
            self._heap[0].woken.set()

    async def wait(self, turn: int, pool: str, since_s: float) -> None:
        """Wait for room in `pool` ("prefill" or "decode") since monotonic time `since_s`. Raises ApiError 429 or 503."""
        if len(self._heap) >= self._max_depth:
            raise ApiError(429, "the queue is full; try again later", code="queue_full", retry_after_s=1)
        waiter = _Waiter(turn, pool)
        heapq.heappush(self._heap, waiter)
        self._waiting[pool] += 1
        try:
            while True:
                left_s = since_s + self._max_wait_s - time.monotonic()
                if left_s <= 0:
                    message = f"no {pool} worker had room within {self._max_wait_s:g} s; try again later"
                    raise ApiError(503, message, code="overloaded", retry_after_s=5)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(_RETRY_S, left_s)):
                        await waiter.woken.wait()
                waiter.woken.clear()
                if self._heap[0] is waiter:
                    return
        finally:
            self._waiting[pool] -= 1
            self._heap.remove(waiter)
            heapq.heapify(self._heap)
