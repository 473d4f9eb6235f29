"""Frames over a blocking socket.

Payloads are gathered when they are sent, and received straight into the cache. Every frame has a
deadline.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any

from disagg_worker.transfer import frames
from disagg_worker.transfer.frames import FrameError, FrameType, Header

# Linux takes at most 1024 buffers per call (IOV_MAX).
MAX_PARTS = 1024
# A peer that is slower than this is as good as dead; it gives the time that a large frame gets
# beyond that of an empty one.
_MIN_BYTES_PER_S = 1 << 20


class FrameSocket:
    """One connection.

    The header of a frame must arrive within `idle_s`; its payload may take `idle_s` and the time
    that its size needs at 1 MiB/s.

    A timeout of each single call would not be enough: a peer that sends a byte now and then could
    hold the connection without end.
    """

    def __init__(self, sock: socket.socket, idle_s: float) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._idle_s = idle_s

    def send(self, header: Header, payload: Sequence[bytes | memoryview] = ()) -> int:
        """Send one frame and return its CRC. Raises OSError."""
        raw, crc = frames.encode_header(header, payload)
        deadline_s = self._deadline_s(sum(len(part) for part in payload))
        pending: list[bytes | memoryview] = [raw, *payload]
        first = 0
        while first < len(pending):
            self._sock.settimeout(left_s(deadline_s))
            sent = self._sock.sendmsg(pending[first : first + MAX_PARTS])
            while first < len(pending) and sent >= len(pending[first]):
                sent -= len(pending[first])
                first += 1
            if sent:
                pending[first] = memoryview(pending[first])[sent:]
        return crc

    def send_json(self, kind: FrameType, content: dict[str, Any]) -> None:
        """Send a control frame."""
        self.send(Header(kind), [json.dumps(content, separators=(",", ":")).encode()])

    def header(self) -> tuple[bytes, Header]:
        """Read the next frame's header and return it raw and parsed.

        Raises FrameError or OSError.
        """
        raw = bytearray(frames.HEADER_BYTES)
        self._recv_into(memoryview(raw), self._deadline_s(0))
        return bytes(raw), frames.decode_header(bytes(raw))

    def control(self, raw: bytes, header: Header) -> bytes:
        """Read and return the verified payload of a control frame whose header has been read.

        Raises FrameError or OSError.
        """
        payload = bytearray(header.length_bytes)
        self.into(raw, header, [memoryview(payload)])
        return bytes(payload)

    def into(self, raw: bytes, header: Header, views: Sequence[memoryview]) -> None:
        """Read a payload into `views` (`header.length_bytes` in all) and verify it.

        Raises FrameError or OSError.
        """
        deadline_s = self._deadline_s(header.length_bytes)
        for view in views:
            self._recv_into(view, deadline_s)
        frames.check_crc(raw, views, header.crc32)

    def _recv_into(self, view: memoryview, deadline_s: float) -> None:
        got = 0
        while got < len(view):
            self._sock.settimeout(left_s(deadline_s))
            n = self._sock.recv_into(view[got:])
            if n == 0:
                raise ConnectionError("the peer closed the connection")
            got += n

    def part(self, linger_s: float) -> None:
        """Stop sending, and discard what the peer still sends for at most `linger_s`.

        A socket that is closed with unread bytes is reset, and the peer would lose the error that
        was sent to it.
        """
        part(self._sock, linger_s)

    def _deadline_s(self, payload_bytes: int) -> float:
        return deadline_s(self._idle_s, payload_bytes)


def deadline_s(idle_s: float, payload_bytes: int) -> float:
    """Return the monotonic time by which a frame that begins now must have been moved."""
    return time.monotonic() + idle_s + payload_bytes / _MIN_BYTES_PER_S


def part(sock: socket.socket, linger_s: float) -> None:
    """Do what FrameSocket.part says."""
    until_s = time.monotonic() + linger_s
    try:
        sock.shutdown(socket.SHUT_WR)
        while True:
            sock.settimeout(left_s(until_s))
            if not sock.recv(1 << 16):
                return
    except OSError:
        pass  # The peer has gone, or does not close in time.


def left_s(deadline_s: float) -> float:
    """Return the time until a deadline. Raises TimeoutError if there is none left."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel end the connection if nobody is at its other end for three seconds in which
    neither end has anything to send.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def stop_reading(sock: socket.socket) -> None:
    """Wake the thread that reads from the socket; answers can still be sent."""
    try:
        sock.shutdown(socket.SHUT_RD)
    except OSError:
        pass  # The connection has ended already.


def hang_up(sock: socket.socket) -> None:
    """Wake the threads that block on the socket, on both ends. Any thread may call this."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # The connection has ended already.


def parse_json(payload: bytes) -> dict[str, Any]:
    """Parse the JSON object of a control frame. Raises FrameError."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise FrameError("control frame: not JSON") from None
    if not isinstance(content, dict):
        raise FrameError("control frame: must be an object")
    return content
