"""The queue in front of full pools: bounded, ordered (fair_order.py), and every wait has a
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_router.admission.asker import NOBODY, Asker
from disagg_router.admission.backlog import Backlog, Place
from disagg_router.admission.fair_order import FairOrder
from disagg_router.admission.turn_order import Turn
from disagg_router.errors import ApiError

# Room can appear without a sign to this router, for example when a request of another router ends,
# so the first in the queue tries again this often. There is no sign either when a request becomes
# the first because time has passed, so this is also how long that may go unnoticed.
_RETRY_S = 0.1


class LeftModel(Exception):
    """Raised when a request need not wait any more for workers of its model."""


@dataclass(eq=False, slots=True)
class _Waiter:
    turn: Turn
    pool: str
    leaves: Callable[[], bool]
    max_wait_s: float
    place: Place
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    may_try: bool = False


def _full() -> ApiError:
    return ApiError(429, "the queue is full; try again later", code="queue_full", retry_after_s=1)


class AdmissionQueue:
    """The requests that found no room, in one order for both pools, because every request needs
    both.

    Within the requests of one API key, the order is that of arrival if `patience_s` is 0.

    Only the first is woken: by `wake`, or after a short while. When it leaves, the next one becomes
    the first. Room that appears while it tries is kept for it: it may have asked a moment too early
    and would otherwise be overtaken by a request that asks a moment later.
    """

    def __init__(self, backlog: Backlog, max_wait_s: float, patience_s: float = 0.0) -> None:
        self._backlog = backlog
        self._max_wait_s = max_wait_s
        self._order = FairOrder(patience_s)
        self._waiters: dict[int, _Waiter] = {}
        self._waiting: Counter[str] = Counter()
        # The requests that ask for room now, and that have waited or were let in before a waiting
        # one.
        self._trying: dict[int, Turn] = {}
        self._kept = False  # room appeared in the meantime

    def turn(self, asker: Asker = NOBODY) -> Turn:
        """Return a place in the order, which the request keeps for all of its waits.

        Its due time may be set later, before it waits. `over` is to be called when it has ended.
        """
        turn = Turn(self._backlog.number(), time.monotonic(), asker=asker)
        self._order.came(turn)
        return turn

    def over(self, turn: Turn, tokens: int) -> None:
        """Record that a request has ended, for which so many tokens were computed."""
        self.gone(turn)
        self._order.went(turn, tokens)

    def waiting(self, pool: str) -> int:
        return self._waiting[pool]

    @property
    def idle(self) -> bool:
        """Whether a new request has nobody to go before and nobody to wait for."""
        return not self._waiters and not self._trying

    def scarce(self) -> str:
        """Return the pool that the first waiting request waits for; later requests wait for the
        same.
        """
        first = self._first()
        return "decode" if first is None else first.pool

    def crowded(self, turn: Turn) -> bool:
        """Return whether a request that waits, or that tries after a wait, has precedence.

        If so, trying now would be jumping the queue.
        """
        now_s, first = time.monotonic(), self._first()
        return (first is not None and self._order.before(first.turn, turn, now_s)) or self._tries_before(turn, now_s)

    def enter(self, turn: Turn) -> bool:
        """Return whether a new request may try without waiting.

        Room that appears while it tries is not meant for the requests that it went before.
        """
        if self.crowded(turn):
            return False
        if self._waiters:
            self._trying[turn.number] = turn
        return True

    def wake(self) -> None:
        """Let the first request try: another one has ended or got its place."""
        if (first := self._first()) is None:
            return
        if self._tries_before(first.turn, time.monotonic()):
            self._kept = True
            return
        first.may_try = True
        first.woken.set()

    def recheck(self) -> None:
        """Let all requests look whether they still wait for the right model."""
        for waiter in self._waiters.values():
            waiter.woken.set()

    def settled(self, turn: Turn) -> None:
        """Record that a request got its place, or has ended."""
        if self._trying.pop(turn.number, None) is not None:
            self._order.placed(turn, time.monotonic())
        self._kept = False
        self.wake()

    def gone(self, turn: Turn) -> None:
        """Record that a request does not try any more; if it did, the next one may."""
        if turn.number in self._trying:
            self.settled(turn)

    def _tries_before(self, turn: Turn, now_s: float) -> bool:
        return any(self._order.before(t, turn, now_s) for t in self._trying.values())

    async def wait(
        self,
        turn: Turn,
        pool: str,
        since_s: float,
        *,
        deadline_s: float = math.inf,
        returning: bool = False,
        size_bytes: int = 0,
        leaves: Callable[[], bool] = lambda: False,
        max_wait_s: float | None = None,
    ) -> None:
        """Wait for room in `pool` ("prefill" or "decode"), where the wait began at monotonic
        `since_s`.

        Raises ApiError 429 when the queue is full, 503 when the longest wait is over, and 504 when
        `deadline_s` has passed. Raises LeftModel when `leaves` holds, which `recheck` looks at.

        `returning` is set for a request that has waited before or has emitted tokens: newcomers
        that have filled the queue in the meantime do not push it out. `max_wait_s` is the longest
        wait if it is another one than that of the queue.
        """
        place = Place(size_bytes, turn.asker, returning)
        if not returning and not self._backlog.make_room(place):
            raise _full()
        waiter = _Waiter(turn, pool, leaves, self._max_wait_s if max_wait_s is None else max_wait_s, place)
        place.told = waiter.woken.set
        with self._backlog.holds(place):
            await self._wait(waiter, since_s, deadline_s)

    async def _wait(self, waiter: _Waiter, since_s: float, deadline_s: float) -> None:
        turn, pool = waiter.turn, waiter.pool
        self._waiters[turn.number] = waiter
        self._order.join(turn)
        self._waiting[pool] += 1
        self._trying.pop(turn.number, None)
        if self._kept:
            self._kept = False
            self.wake()
        tries = False
        try:
            await self._until_first(waiter, since_s + waiter.max_wait_s, deadline_s)
            self._trying[turn.number] = turn
            tries = True
        finally:
            self._waiting[pool] -= 1
            del self._waiters[turn.number]
            self._order.leave(turn)
            if waiter.may_try and not tries:
                self.wake()
            # The next one need not try at once, but it has to know that it is now the one to try
            # again from time to time.
            if (first := self._first()) is not None:
                first.woken.set()

    async def _until_first(self, waiter: _Waiter, until_s: float, deadline_s: float) -> None:
        """Return when the waiter is the first and was woken, or has been the first for a while."""
        retry_s = math.inf
        while True:
            if waiter.place.pushed_out:
                raise _full()
            if waiter.leaves():
                raise LeftModel
            now_s = time.monotonic()
            left_s = min(until_s, deadline_s) - now_s
            if left_s <= 0:
                if deadline_s < until_s:
                    raise ApiError(
                        504, f"no {waiter.pool} worker had room before the request's deadline", code="deadline_exceeded"
                    )
                message = f"no {waiter.pool} worker had room within {waiter.max_wait_s:g} s; try again later"
                raise ApiError(503, message, code="overloaded", retry_after_s=5)
            first = self._first()
            if first is waiter:
                if waiter.may_try or now_s >= retry_s:
                    return
                retry_s = min(retry_s, now_s + _RETRY_S)
            elif first is not None:
                self._hand_on(waiter, first)
                retry_s = math.inf
            waiter.woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, retry_s - now_s)):
                    await waiter.woken.wait()

    def _hand_on(self, waiter: _Waiter, first: _Waiter) -> None:
        """Wake the request that is now first: the waiter was first, or was woken as such, and no
        longer is.
        """
        if waiter.may_try:
            waiter.may_try = False
            self.wake()
        first.woken.set()

    def _first(self) -> _Waiter | None:
        turn = self._order.first(time.monotonic())
        return None if turn is None else self._waiters[turn.number]
