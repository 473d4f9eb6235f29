"""The connections of clients: guarded, and strict about where a request ends.

Without the guard, whoever asks and never reads would hold a place in the pools or in the service
beside them, and the memory of a piece, for ever: the server waits for the client, and the kernel
asks it without end whether it reads now.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from disagg_wire.connection_events import GuardedConnection
from disagg_wire.connection_guard import ConnectionGuard, Port
from disagg_wire.http_framing import chunk_problem, framing_problem, head_problem

_API = b"/v1/"


class ApiPort(Port):
    """The port of the API, which knows when clients still come."""

    asked_s = -math.inf
    """When the last request for an answer came, by the clock of the event loop."""

    async def until_unasked(self, quiet_s: float, most_s: float) -> None:
        """Wait until no request has come for `quiet_s` seconds, but `most_s` seconds at most."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        # Nothing tells the end of a silence.
        while (rest_s := min(max(began_s, self.asked_s) + quiet_s, began_s + most_s) - clock()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest_s)


class _StrictBuffer(ReceiveBuffer):
    """What has come and is not parsed yet. h11 is lenient about lines, which is refused here."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = bytes(self._data)
        lines = super().maybe_extract_lines()
        if lines is not None and (problem := head_problem(before[: len(before) - len(self._data)])):
            raise h11.LocalProtocolError(problem)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if line is not None and (problem := chunk_problem(line)):
            raise h11.LocalProtocolError(problem)
        return line


class _StrictConnection(h11.Connection):
    """A parser that tells the guard of the connection how far a request has come."""

    def __init__(self, port: ApiPort, guard: ConnectionGuard) -> None:
        super().__init__(h11.SERVER, port.limits.head_bytes)
        self._receive_buffer = _StrictBuffer()
        self._port = port
        self._guard = guard

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        event = super().next_event()
        if isinstance(event, h11.Request):
            if problem := framing_problem(event.http_version, event.headers):
                raise h11.RemoteProtocolError(problem)
            self._guard.head_came()
            if event.target.startswith(_API):
                self._port.asked_s = asyncio.get_running_loop().time()
        elif isinstance(event, h11.EndOfMessage):
            self._guard.request_came()
        return event


class _ClientConnection(GuardedConnection, H11Protocol):
    """A connection whose parser tells its guard how far a request has come."""

    port: ApiPort

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _StrictConnection(self.port, self._guard)


def connection_class(port: ApiPort) -> type[H11Protocol]:
    """Return the class of the connections of a port."""
    members: dict[str, Any] = {"port": port}
    return type("ClientConnection", (_ClientConnection,), members)
