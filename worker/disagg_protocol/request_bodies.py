"""Reads the bodies of requests, within a limit for each and one for all that are here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from disagg_protocol.bodies import BadRequest
from disagg_protocol.errors import NoCapacity

MAX_BODY_BYTES = 16 << 20
MAX_BODIES_BYTES = 64 << 20
_TIMEOUT_S = 30.0


class RequestBodies:
    """The bodies that have come in part or whole and are not parsed yet."""

    def __init__(self) -> None:
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, whose bytes count until the block ends.

        Raises BadRequest if it is larger than MAX_BODY_BYTES or does not come in time, NoCapacity
        if all together are larger than MAX_BODIES_BYTES, and ClientDisconnect.
        """
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
                    size += len(part)
                    if size > MAX_BODY_BYTES:
                        raise BadRequest(f"body: over {MAX_BODY_BYTES} bytes")
                    if self.held_bytes + len(part) > MAX_BODIES_BYTES:
                        raise NoCapacity("too many bytes of other requests are on their way")
                    self.held_bytes += len(part)
                    parts.append(part)
        except TimeoutError:
            raise BadRequest(f"body: did not come within {_TIMEOUT_S:g} s") from None
