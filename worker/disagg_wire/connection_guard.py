"""The limits of connections, for the servers of all processes.

A server tells the guard of each connection what happens on it. Strangers can hold a place only for
a while, and only as long as nobody else needs it; and whoever does not read holds nothing up.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from disagg_wire.connection_slots import ConnectionSlots

log = logging.getLogger(__name__)
# How often within the limit a look is taken at what the peer has read.
_LOOKS = 4
# Lingers for no time: the connection is reset.
_GIVE_UP = struct.pack("ii", 1, 0)
# Descriptors that a process needs for itself, and those that a request may need for each
# connection: its own, and those to two workers.
_OWN_FILES = 256
_FILES_A_CONNECTION = 3
_FEW = 16


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of each connection of a port, and of all of them."""

    connections: int = 4096
    head_s: float = 10.0
    """The time from its beginning to the end of its first request's head."""
    idle_s: float = 75.0
    """The time from the end of an answer to the end of the next request's head."""
    head_bytes: int = 64 << 10
    """The most bytes of a head, and of what comes while no request is read."""
    stall_s: float = 60.0
    """The time in which the peer must read something of an answer that waits for it."""
    least_bytes_per_s: float = 1024.0
    """What it must read in that time on average."""


def raise_file_limit(connections: int) -> int:
    """Let the process open as many files as it may.

    Returns the number of connections, at most `connections`, for which there are enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OWN_FILES + _FILES_A_CONNECTION * connections
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(connections, max(_FEW, (soft - _OWN_FILES) // _FILES_A_CONNECTION))


class Port:
    """The connections of one port. `stalled` is called for each peer that is cut off."""

    def __init__(self, limits: ConnectionLimits, stalled: Callable[[], None] = lambda: None) -> None:
        self.limits = limits
        self.stalled = stalled
        self.slots: ConnectionSlots[ConnectionGuard] = ConnectionSlots(limits.connections)


class ConnectionGuard:
    """The guard of one connection, which it cuts when a limit is passed."""

    def __init__(self, port: Port, loop: asyncio.AbstractEventLoop) -> None:
        self._port = port
        self._limits = port.limits
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._late: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._running = 0
        self._head_bytes = 0
        self._in_head = True
        self._has_moved = False
        self._left_bytes = 0
        self._last_read_s = self._window_s = 0.0
        self._window_bytes = 0

    def made(self, transport: asyncio.Transport) -> None:
        """Begin to watch a connection; another one, or this one, may have to go for it."""
        self._transport = transport
        peer = transport.get_extra_info("peername")
        victim = self._port.slots.enter(self, str(peer[0]) if isinstance(peer, tuple) else "")
        if victim is not None:
            victim.cut()
        self._late = self._loop.call_later(self._limits.head_s, self.cut)

    def lost(self) -> None:
        """Forget the connection."""
        for timer in (self._late, self._look):
            if timer is not None:
                timer.cancel()
        self._late = self._look = None
        self._port.slots.leave(self)

    def received(self, size: int) -> None:
        """Count what has come, after it has been parsed, if it is for a head alone."""
        if self._has_moved or not self._in_head:
            self._has_moved = False
            return
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes:
            self.cut()

    def head_came(self) -> None:
        """Note that the head of a request is there: its body has limits of its own."""
        self._in_head, self._has_moved = False, True
        self._running += 1
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def request_came(self) -> None:
        """Note that all of a request is there: from now on it is this process that works."""
        self._in_head, self._has_moved, self._head_bytes = True, True, 0
        if self._running > 0:
            self._port.slots.engage(self)

    def answered(self) -> None:
        """Note that an answer has been given, or at least written."""
        self._running -= 1
        if self._running > 0 or self._transport is None:
            return
        self._port.slots.disengage(self)
        if self._late is None:
            self._late = self._loop.call_later(self._limits.idle_s, self.cut)
        if self._transport.get_write_buffer_size():
            self._watch()

    def paused(self) -> None:
        """Note that the server must wait for the peer to read."""
        self._watch()

    def resumed(self) -> None:
        """Note that the peer has read so much that more may be written."""
        if self._look is not None:
            self._note_reading()

    def cut(self) -> None:
        """Reset the connection. What lies in the buffers is given up, also in the kernel's: to
        close the connection would mean to wait for the peer.
        """
        if self._transport is None:
            return
        if (sock := self._transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _GIVE_UP)
        self._transport.abort()

    def _watch(self) -> None:
        if self._look is None and self._transport is not None:
            self._left_bytes = self._transport.get_write_buffer_size()
            self._last_read_s = self._window_s = self._loop.time()
            self._window_bytes = 0
            self._look = self._loop.call_later(self._limits.stall_s / _LOOKS, self._see)

    def _note_reading(self) -> int:
        """Note what the peer has read since the last time; returns what is left."""
        left_bytes = 0 if self._transport is None else self._transport.get_write_buffer_size()
        if left_bytes < self._left_bytes:
            self._window_bytes += self._left_bytes - left_bytes
            self._last_read_s = self._loop.time()
        self._left_bytes = left_bytes
        return left_bytes

    def _see(self) -> None:
        self._look = None
        if not self._note_reading():
            return
        limit_s, now_s = self._limits.stall_s, self._loop.time()
        read_for_s, read_bytes = now_s - self._window_s, math.inf
        if read_for_s >= limit_s:
            read_bytes, self._window_bytes, self._window_s = self._window_bytes, 0, now_s
        if now_s - self._last_read_s < limit_s and read_bytes >= self._limits.least_bytes_per_s * read_for_s:
            self._look = self._loop.call_later(limit_s / _LOOKS, self._see)
            return
        log.warning("a client reads next to nothing of its answer for %g s: its connection is cut", limit_s)
        self._port.stalled()
        self.cut()
