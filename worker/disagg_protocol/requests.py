"""The requests in progress of one process, and how they end before their time.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from disagg_protocol.bodies import Line, Lines
from disagg_protocol.events import ErrorEvent
from disagg_wire import codes

ELSEWHERE = ErrorEvent(
    codes.DRAINING, "this worker stops serving in this role; the request can go on elsewhere", retryable=True
)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Work that has begun."""

    lines: AsyncIterator[Line | Lines]
    """The lines of the response, alone or several that go out together."""
    close: Callable[[], None]
    """Gives back whatever the job still holds (idempotent); to be called when the stream ends,
    however it ends.
    """
    interrupt: Callable[[ErrorEvent], None]
    """Makes an error the next line of the stream, and the last one."""
    deadline_s: float
    """The monotonic time at which the lines end."""


class RunningRequests:
    """The requests that a process has taken in."""

    def __init__(self) -> None:
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._jobs: dict[Job, Callable[[], None]] = {}

    def enter(self) -> None:
        self.active += 1
        self.idle.clear()

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.idle.set()

    def keep(self, job: Job) -> Callable[[], None]:
        """Remember a job that has begun.

        Returns the function that frees what it holds (idempotent); the process is not idle before
        it has been called.
        """

        def close() -> None:
            if self._jobs.pop(job, None) is None:
                return
            try:
                job.close()
            finally:
                self.leave()

        self._jobs[job] = close
        return close

    def interruptions(self) -> list[Callable[[ErrorEvent], None]]:
        """Return what ends each running job with an error of the caller's."""
        return [job.interrupt for job in self._jobs]

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until all requests have ended, and return whether they did so in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.idle.wait()
        except TimeoutError:
            return False
        return True

    async def break_off(self, timeout_s: float) -> None:
        """Tell the clients of all running requests to go on elsewhere.

        A client that does not read that within the timeout is cut off.
        """
        for interrupt in self.interruptions():
            interrupt(ELSEWHERE)
        if not await self.wait_idle(timeout_s):
            for close in list(self._jobs.values()):
                close()
