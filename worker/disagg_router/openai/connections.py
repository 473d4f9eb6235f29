"""The connections of clients, which are cut when a client stops reading its answer.

Without that, whoever asks and never reads would hold a place in the pools or in the service beside
them, and the memory of a piece, for ever: the server waits for the client, and the kernel asks it
without end whether it reads now.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)
# How often within the limit a look is taken at what the client has read.
_LOOKS = 4
# Lingers for no time: the connection is reset.
_GIVE_UP = struct.pack("ii", 1, 0)


class _WatchedConnection(H11Protocol):
    """A connection that is watched while data lies in its buffer.

    Looks are taken from the moment at which the server must wait for the client, and from the end
    of an answer of which something still lies there, so that a client that reads costs nothing.
    """

    limit_s: float
    stalled: Callable[[], None]
    _look: asyncio.TimerHandle | None = None
    _left_bytes = math.inf
    """What lay in the buffer when the client was last seen to read."""
    _read_s = 0.0
    """The time of the loop at which that was."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._left_bytes = math.inf  # the client has read, and more may be written now

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._look is None:
            self._left_bytes, self._read_s = self.transport.get_write_buffer_size(), self.loop.time()
            self._look = self.loop.call_later(self.limit_s / _LOOKS, self._see)

    def _see(self) -> None:
        self._look = None
        left_bytes, now_s = self.transport.get_write_buffer_size(), self.loop.time()
        if not left_bytes:
            return
        if left_bytes < self._left_bytes:
            self._left_bytes, self._read_s = left_bytes, now_s
        if now_s - self._read_s < self.limit_s:
            self._look = self.loop.call_later(self.limit_s / _LOOKS, self._see)
            return
        log.warning("a client has read nothing of its answer for %g s: its connection is cut", self.limit_s)
        self.stalled()
        # What lies in the buffers is given up, also in the kernel's: to close the connection would
        # mean to wait for the client.
        if (sock := self.transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _GIVE_UP)
        self.transport.abort()


def connection_class(limit_s: float, stalled: Callable[[], None]) -> type[H11Protocol]:
    """Return the class of connections that are cut when a client reads nothing for `limit_s`.

    `stalled` is called for each of them.
    """
    members: dict[str, Any] = {"limit_s": limit_s, "stalled": staticmethod(stalled)}
    return type("WatchedConnection", (_WatchedConnection,), members)
