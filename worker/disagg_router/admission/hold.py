"""Requests that wait for a model that nobody serves now.

They wait apart from those that wait for room: nothing that a running request frees helps them, and
they must keep nobody waiting whose model is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from disagg_router.admission.asker import NOBODY, Asker
from disagg_router.admission.backlog import Backlog, Place
from disagg_router.admission.demand import Demand
from disagg_router.errors import ApiError
from disagg_wire import series

# The least and the most that a client is told to wait, in seconds.
_RETRY_AFTER_S = (5, 3600)
_TOO_MANY = "too many requests wait"


class Hold:
    """The requests that wait until a condition holds, which `recheck` looks at.

    `ended` is told how each wait ended, in the words of `disagg_wire.series`.
    """

    def __init__(self, backlog: Backlog, max_wait_s: float, ended: Callable[[str], None] = lambda _: None) -> None:
        self._backlog = backlog
        self.max_wait_s = max_wait_s
        self._ended = ended
        self._waiters: set[asyncio.Event] = set()
        self._asking: set[asyncio.Event] = set()
        self._ended_why = ""
        self._since_s = math.inf
        self._took_s: float | None = None
        self.demand = Demand()
        self.cold_start_s: float | None = None
        """How long workers take to come, in seconds, as the operator has measured it."""

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    @property
    def asking(self) -> int:
        """The requests that wait for workers to be made."""
        return len(self._asking)

    def end(self, why: str) -> None:
        """Answer all that wait here, and from now on at once: nothing serves them any more."""
        self._ended_why = why
        self.recheck()

    def recheck(self) -> None:
        """Let all requests look whether they can go on: the workers are others now."""
        for waiter in self._waiters:
            waiter.set()

    async def until(
        self,
        ready: Callable[[], bool],
        name: str,
        size_bytes: int,
        since_s: float,
        *,
        deadline_s: float = math.inf,
        returning: bool = False,
        asks: bool = True,
        asker: Asker = NOBODY,
    ) -> None:
        """Return when `ready` holds, for a request for the model `name` that waits since monotonic
        `since_s`. Unless it `asks`, nobody learns that workers are wanted.

        Raises ApiError 503 when too much waits already or the longest wait is over, and 504 when
        `deadline_s` has passed. `returning` is set for a request that has waited before or has
        emitted tokens, which is not pushed out by newcomers.
        """
        if ready():
            return
        if self._ended_why:
            raise self._not_served(name, self._ended_why)
        if asks:
            self.demand.note()
        outcome, place = series.CANCELLED, Place(size_bytes, asker, returning)
        try:
            if not returning and not self._backlog.make_room(place):
                outcome = series.REFUSED
                raise self._not_served(name, _TOO_MANY)
            with self._backlog.holds(place):
                outcome = series.EXPIRED
                try:
                    await self._until(ready, name, since_s + self.max_wait_s, deadline_s, place, asks=asks)
                except asyncio.CancelledError:
                    outcome = series.CANCELLED
                    raise
                outcome = series.SERVED
        finally:
            self._ended(series.REFUSED if place.pushed_out else outcome)

    async def _until(
        self, ready: Callable[[], bool], name: str, until_s: float, deadline_s: float, place: Place, *, asks: bool
    ) -> None:
        waiter = asyncio.Event()
        place.told = waiter.set
        if asks:
            self._asking.add(waiter)
        if not self._waiters:
            self._since_s = time.monotonic()
        self._waiters.add(waiter)
        try:
            while not ready():
                if self._ended_why or place.pushed_out:
                    raise self._not_served(name, self._ended_why or _TOO_MANY)
                left_s = min(until_s, deadline_s) - time.monotonic()
                if left_s <= 0 and deadline_s < until_s:
                    message = f"no worker served the model {name!r} before the request's deadline"
                    raise ApiError(504, message, code="deadline_exceeded")
                if left_s <= 0:
                    raise self._not_served(name, f"none came within {self.max_wait_s:g} s")
                waiter.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_s):
                        await waiter.wait()
            self._took_s = time.monotonic() - self._since_s
        finally:
            self._waiters.discard(waiter)
            self._asking.discard(waiter)

    def _not_served(self, name: str, why: str) -> ApiError:
        message = f"no worker serves the model {name!r} now, and {why}; try again later"
        return ApiError(503, message, code="starting", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        """Return when to come back: when the workers that the first of all waits for are due.

        They take as long as the operator says, or as they took last time.
        """
        least, most = _RETRY_AFTER_S
        takes_s = self._took_s if self.cold_start_s is None else self.cold_start_s
        if takes_s is None:
            return least
        passed_s = time.monotonic() - self._since_s if self._waiters else 0.0
        return math.ceil(min(max(takes_s - passed_s, least), most))
