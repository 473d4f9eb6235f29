"""Reads the bodies of requests, within a limit for each and one for all that are here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from disagg_router.errors import ApiError

_TIMEOUT_S = 60.0


class Bodies:
    """The bodies that have come in part or whole and are not parsed yet."""

    def __init__(self, most_bytes: int, most_bytes_of_all: int) -> None:
        self._most_bytes = most_bytes
        self._most_bytes_of_all = most_bytes_of_all
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, whose bytes count until the block ends.

        Raises ApiError and ClientDisconnect.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and len(announced) < 20 and int(announced) > self._most_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        try:
            await self._receive(request, parts)
            parts[:] = [b"".join(parts)]
            yield parts[0]
        finally:
            self.held_bytes -= sum(map(len, parts))

    async def _receive(self, request: Request, parts: list[bytes]) -> None:
        """Append the pieces of a body to `parts`, and count them."""
        size = 0
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                async for part in request.stream():
                    # What has been announced does not count: nothing need come of it.
                    if self.held_bytes + len(part) > self._most_bytes_of_all:
                        message = "too many bytes of other requests are on their way; try again"
                        raise ApiError(503, message, code="overloaded", retry_after_s=1)
                    size += len(part)
                    if size > self._most_bytes:
                        raise self._too_large()
                    self.held_bytes += len(part)
                    parts.append(part)
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {_TIMEOUT_S:g} s", code="body_timeout") from None

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over {self._most_bytes} bytes", code="body_too_large")
