"""Frames over a blocking socket: gather on the way out, straight into the cache on the way in."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from typing import Any

from disagg_worker.transfer import frames
from disagg_worker.transfer.frames import FrameError, FrameType, Header

# Linux takes at most 1024 buffers a call (IOV_MAX).
_IOV_MAX = 1024


def send_frame(sock: socket.socket, header: Header, payload: Sequence[bytes | memoryview] = ()) -> int:
    """Send one frame and return its crc. The socket's timeout bounds every wait; raises OSError."""
    raw, crc = frames.encode_header(header, payload)
    pending: list[bytes | memoryview] = [raw, *payload]
    while pending:
        sent = sock.sendmsg(pending[:_IOV_MAX])
        while pending and sent >= len(pending[0]):
            sent -= len(pending.pop(0))
        if sent:
            pending[0] = memoryview(pending[0])[sent:]
    return crc


def send_json(sock: socket.socket, kind: FrameType, content: dict[str, Any]) -> None:
    """Send a control frame."""
    send_frame(sock, Header(kind), [json.dumps(content, separators=(",", ":")).encode()])


def recv_into(sock: socket.socket, view: memoryview) -> None:
    """Fill `view` from the socket. Raises ConnectionError at end of stream, TimeoutError by the socket's timeout."""
    got = 0
    while got < len(view):
        n = sock.recv_into(view[got:])
        if n == 0:
            raise ConnectionError("the peer closed the connection")
        got += n


def recv_header(sock: socket.socket) -> tuple[bytes, Header]:
    """The next frame's raw header and what it says."""
    raw = bytearray(frames.HEADER_BYTES)
    recv_into(sock, memoryview(raw))
    return bytes(raw), frames.decode_header(bytes(raw))


def recv_control(sock: socket.socket, raw: bytes, header: Header) -> bytes:
    """The verified payload of a control frame whose header was read."""
    payload = bytearray(header.length_bytes)
    recv_into(sock, memoryview(payload))
    frames.check_crc(raw, [memoryview(payload)], header.crc32)
    return bytes(payload)


def parse_json(payload: bytes) -> dict[str, Any]:
    """A control frame's JSON object. Raises FrameError."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise FrameError("control frame: not JSON") from None
    if not isinstance(content, dict):
        raise FrameError("control frame: must be an object")
    return content
