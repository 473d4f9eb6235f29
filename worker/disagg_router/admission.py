"""The queue in front of full pools: bounded, first come first served, every wait with a deadline."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
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
    may_try: bool = field(default=False, compare=False)
    left: bool = field(default=False, compare=False)


class AdmissionQueue:
    """Requests that found no room wait here, in order of arrival whatever pool they wait for: every request needs both.

    Only the oldest is woken: by `wake`, or after a short while. When it leaves the next one is the oldest. While it tries, room that
    appears is kept for it: it may have asked a moment too early, and would else be overtaken by whoever asks a moment later.
    """

    def __init__(self, max_depth: int, max_wait_s: float) -> None:
        self._max_depth = max_depth
        self._max_wait_s = max_wait_s
        self._turns = itertools.count()
        self._heap: list[_Waiter] = []
        self._waiting: Counter[str] = Counter()
        self._trying: set[int] = set()  # turns that waited and ask for room now
        self._kept = False  # room appeared meanwhile

    def turn(self) -> int:
        """A place in the order, kept over all of a request's waits."""
        return next(self._turns)

    def waiting(self, pool: str) -> int:
        return self._waiting[pool]

    def scarce(self) -> str:
        """The pool that those who wait wait for: who comes later waits for the same."""
        oldest = self._oldest()
        return "decode" if oldest is None else oldest.pool

    def crowded(self, turn: int) -> bool:
        """Somebody came before this turn and still waits: trying now would be jumping the queue."""
        oldest = self._oldest()
        return (oldest is not None and oldest.turn < turn) or self._tries_before(turn)

    def wake(self) -> None:
        """Something ended, or got its place: the oldest may try."""
        if (oldest := self._oldest()) is None:
            return
        if self._tries_before(oldest.turn):
            self._kept = True
            return
        oldest.may_try = True
        oldest.woken.set()

    def settled(self, turn: int) -> None:
        """A request got its place, or has ended."""
        self._trying.discard(turn)
        self._kept = False
        self.wake()

    def gone(self, turn: int) -> None:
        """A request is over, however: if it was trying, the next one may."""
        if turn in self._trying:
            self.settled(turn)

    def _tries_before(self, turn: int) -> bool:
        return any(t < turn for t in self._trying)

    async def wait(self, turn: int, pool: str, since_s: float, *, deadline_s: float = math.inf, returning: bool = False) -> None:
        """Wait for room in `pool` ("prefill" or "decode") since monotonic time `since_s`, until `deadline_s` at most. Raises ApiError
        429, 503, or 504 at that deadline.

        `returning`: it waited before, or has emitted tokens. Newcomers that filled the queue meanwhile don't push it out.
        """
        if self._waiting.total() >= self._max_depth and not returning:
            raise ApiError(429, "the queue is full; try again later", code="queue_full", retry_after_s=1)
        waiter = _Waiter(turn, pool)
        heapq.heappush(self._heap, waiter)
        self._waiting[pool] += 1
        self._trying.discard(turn)
        if self._kept:
            self._kept = False
            self.wake()
        try:
            await self._until_oldest(waiter, since_s + self._max_wait_s, deadline_s)
            self._trying.add(turn)
        finally:
            was_oldest = self._oldest() is waiter
            self._waiting[pool] -= 1
            waiter.left = True
            # The next one need not try at once, but has to know that it is the one to try again from now on.
            if was_oldest and (oldest := self._oldest()) is not None:
                oldest.woken.set()

    async def _until_oldest(self, waiter: _Waiter, until_s: float, deadline_s: float) -> None:
        """Return when the waiter is the oldest and was woken, or has been the oldest for a while."""
        while True:
            left_s = min(until_s, deadline_s) - time.monotonic()
            if left_s <= 0:
                if deadline_s < until_s:
                    raise ApiError(504, f"no {waiter.pool} worker had room before the request's deadline", code="deadline_exceeded")
                message = f"no {waiter.pool} worker had room within {self._max_wait_s:g} s; try again later"
                raise ApiError(503, message, code="overloaded", retry_after_s=5)
            was_oldest = self._oldest() is waiter
            try:
                async with asyncio.timeout(min(_RETRY_S, left_s) if was_oldest else left_s):
                    await waiter.woken.wait()
            except TimeoutError:
                waiter.may_try = was_oldest
            waiter.woken.clear()
            if waiter.may_try and self._oldest() is waiter and time.monotonic() < min(until_s, deadline_s):
                return
            waiter.may_try = False

    def _oldest(self) -> _Waiter | None:
        while self._heap and self._heap[0].left:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None
