"""Messages between rank 0 and another rank, over a socket pair that nobody else can reach.

A message consists of its kind, its length and its bytes.
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
    """The kind of a message.

    START, CACHE, STEP and MOVE go to a rank; the others come from it. All but STEP are JSON.
    """

    START = 1
    CACHE = 2
    STEP = 3
    LOADED = 4
    READY = 5
    EXPORTED = 6
    FAILED = 7
    MOVE = 8
    MOVED = 9


class Channel:
    """One end of the connection between two ranks.

    Any thread may send; only one may receive. Raises OSError (TimeoutError) if the peer has gone or
    does not read.
    """

    def __init__(self, sock: socket.socket, send_timeout_s: float) -> None:
        self._sock = sock
        self._sending = threading.Lock()
        # A timeout of the whole socket would also bound the wait for the next message, which may
        # take any time if nobody asks for anything.
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
        """Return the next message, however long it takes.

        Raises ConnectionError when the peer has gone.
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
        """Close the connection, which ends the waits on both ends."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The peer has closed it already.
        self._sock.close()
