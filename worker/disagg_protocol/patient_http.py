"""HTTP connections whose beginning has a limit in time, in bytes and in number.

uvicorn waits for ever for the head of a request, however long it gets: anybody who reaches the port
could use up memory and descriptors.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# The key of a scope under which the connection's transport is.
TRANSPORT = "disagg.transport"
_HEAD_S = 10.0
_MAX_HEAD_BYTES = 64 << 10
_MAX_CONNECTIONS = 4096


class PatientProtocol(HttpToolsProtocol):
    """A connection that is closed if its first request does not come."""

    _late: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
            return
        self._late = self.loop.call_later(_HEAD_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[TRANSPORT] = self.transport

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._head_bytes += len(data)
        if self.cycle is None and self._head_bytes > _MAX_HEAD_BYTES:
            self._give_up()

    def _give_up(self) -> None:
        # There is a cycle from the end of the first head on.
        cycle: Any = self.cycle
        if cycle is None:
            self.transport.abort()
