"""Messages between rank 0 and another rank, over a socket pair that nobody else can reach.

A message is its kind, its length, its bytes.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct("<BI")
_MOST_BYTES = 64 << 20


class MessageKind(IntEnum):
    """START, CACHE and STEP go to a rank; the others come from it. All but STEP are JSON."""

    START = 1
    CACHE = 2
    STEP = 3
    LOADED = 4
    READY = 5
    EXPORTED = 6
    FAILED = 7


class Channel:
    """One end.

    Any thread sends, one receives. Raises OSError (TimeoutError) for a peer that is gone or does
    not read.
    """

    def __init__(self, sock: socket.socket, send_timeout_s: float) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        # A timeout on the socket would bound the wait for the next message too, which may take for
        # ever: while nothing is asked.
        seconds, rest = divmod(send_timeout_s, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6)))

    def send(self, kind: MessageKind, content: bytes) -> None:
        try:
            with self._sending:
                self._sock.sendall(_HEADER.pack(kind, len(content)) + content)
        except BlockingIOError:
            raise TimeoutError("the other rank does not read") from None

    def send_json(self, kind: MessageKind, content: dict[str, Any]) -> None:
        self.send(kind, json.dumps(content).encode())

    def receive(self) -> tuple[MessageKind, bytes]:
        """The next message, however long it takes; ends with ConnectionError when the peer has
        gone.
        """
        number, size = _HEADER.unpack(self._exactly(_HEADER.size))
        if size > _MOST_BYTES:
            raise ConnectionError(f"a message of {size} bytes")
        return MessageKind(number), self._exactly(size)

    def _exactly(self, n: int) -> bytes:
        content = bytearray(n)
        at, view = 0, memoryview(content)
        while at < n:
            got = self._sock.recv_into(view[at:])
            if not got:
                raise ConnectionError("the other rank has gone")
            at += got
        return bytes(content)

    def close(self) -> None:
        """Both ends' waits end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was first
        self._sock.close()
