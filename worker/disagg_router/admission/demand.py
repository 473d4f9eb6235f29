"""The demand for workers where there are none, for which the operator waits.

A deployment that is scaled to zero has no workers that could tell that they are needed. The router
knows, and the operator asks it by a request that is answered when there is something to tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets

_MOST_POLLS = 32


class Demand:
    """The requests that no worker could serve.

    A cursor is a text that names a point in their sequence, and this process. It is told with each
    answer, so that a request which came and went between two polls is noticed as well.
    """

    def __init__(self) -> None:
        self._process = secrets.token_hex(8)
        self._asked = 0
        self._polls = 0
        self._ended = False
        self._news = asyncio.Event()

    @property
    def cursor(self) -> str:
        return f"{self._process}:{self._asked}"

    def note(self) -> None:
        """Record that a request asks for workers that do not exist."""
        self._asked += 1
        self._tell()

    def end(self) -> None:
        """Answer all that wait here, and from now on at once: the process ends."""
        self._ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def is_news(self, cursor: str) -> bool:
        """Return whether somebody has asked since an earlier answer, which gave `cursor`."""
        process, _, number = cursor.partition(":")
        return process == self._process and number != str(self._asked)

    async def until_asked(self, cursor: str, wait_s: float) -> None:
        """Return when somebody has asked, but after `wait_s` at the latest.

        If too many wait here already, or the process ends, it returns at once.
        """
        if self._ended or self.is_news(cursor) or self._polls >= _MOST_POLLS:
            return
        self._polls += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        finally:
            self._polls -= 1
