"""Reads the bodies of requests, within a limit for each and one for all that are here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The limits of each body, and of all of them together."""

    bytes_each: int
    bytes_together: int
    seconds_each: float


class Refusal(Enum):
    """Why a body is not read to its end."""

    TOO_LARGE = auto()
    """It is larger than any may be."""
    CROWDED = auto()
    """There is no room for it beside the others."""
    LATE = auto()
    """It did not come in time."""


class RequestBodies:
    """The bodies that have come in part or whole and are not parsed yet.

    `error_of` makes the exception of a refusal, in the words of the server.
    """

    def __init__(self, limits: BodyLimits, error_of: Callable[[Refusal, BodyLimits], Exception]) -> None:
        self._limits = limits
        self._error_of = error_of
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, pieces: AsyncIterator[bytes], announced: str = "") -> AsyncIterator[bytes]:
        """Yield the body that comes in pieces, whose bytes count until the block ends.

        One whose Content-Length is announced and too large is not read at all. Raises what
        `error_of` makes, and what `pieces` raises.
        """
        if announced.isdigit() and len(announced) < 20 and int(announced) > self._limits.bytes_each:
            raise self._error_of(Refusal.TOO_LARGE, self._limits)
        parts: list[bytes] = []
        try:
            await self._receive(pieces, parts)
            parts[:] = [b"".join(parts)]
            yield parts[0]
        finally:
            self.held_bytes -= sum(map(len, parts))

    async def _receive(self, pieces: AsyncIterator[bytes], parts: list[bytes]) -> None:
        """Append the pieces of a body to `parts`, and count them."""
        size = 0
        try:
            async with asyncio.timeout(self._limits.seconds_each):
                async for part in pieces:
                    size += len(part)
                    if size > self._limits.bytes_each:
                        raise self._error_of(Refusal.TOO_LARGE, self._limits)
                    # What has been announced does not count: nothing need come of it.
                    if self.held_bytes + len(part) > self._limits.bytes_together:
                        raise self._error_of(Refusal.CROWDED, self._limits)
                    self.held_bytes += len(part)
                    parts.append(part)
        except TimeoutError:
            raise self._error_of(Refusal.LATE, self._limits) from None
