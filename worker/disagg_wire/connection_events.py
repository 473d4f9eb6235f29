"""The part of a server's connections that tells their guard what happens on them."""

from __future__ import annotations

import asyncio
from typing import Any

from disagg_wire.connection_guard import ConnectionGuard, Port


class GuardedConnection(asyncio.Protocol):
    """A connection that has a guard; the server's own class comes behind it.

    Only a parser knows how far a request has come: that class tells the guard (`head_came`,
    `request_came`).
    """

    port: Port
    loop: asyncio.AbstractEventLoop

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._guard = ConnectionGuard(self.port, self.loop)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._guard.made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guard.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._guard.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._guard.resumed()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc] # the server's class has it
        self._guard.answered()
