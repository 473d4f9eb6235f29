"""Frames of version 2 over a blocking socket.

Payloads are gathered from and scattered to the cache in pieces of many blocks. A piece is checked
just before it is sent and just after it has arrived, while the kernel moves others.
"""

from __future__ import annotations

import hmac
import json
import math
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from disagg_worker.transfer import frame_socket, frames
from disagg_worker.transfer.frames import TAG_BYTES, FrameError, FrameType, Header
from disagg_worker.transfer.seals import Seal, Sealer

# What is sent or received by one call: little enough to stay in the cache of a core.
_PIECE_BYTES = 512 << 10
# A receiver that waits for a large payload is woken when so much has come, not for every packet.
_WAKE_BYTES = 256 << 10
# The window must be larger than that, or the sender would wait for a part of it to be read.
_WINDOW_BYTES = 4 * _WAKE_BYTES


class SealedSocket:
    """One connection of a transfer, once BEGIN has been sent or verified.

    A frame has `idle_s` and what its size needs at the least rate. No call is begun after that, and
    none takes longer than it.
    """

    def __init__(self, sock: socket.socket, idle_s: float, out: Sealer, into: Sealer) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._idle_s = idle_s
        self._out = out
        self._into = into
        self._wake_bytes = 0
        self._window_is_large = False
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._wake_at(1)

    # ---- sending ----

    def send(self, header: Header, payload: Sequence[bytes | memoryview] = ()) -> bytes:
        """Send one frame with the next number, and return its tag. Raises OSError."""
        length = sum(map(len, payload))
        deadline_s = self._sending(length)
        raw = frames.encode_header_2(replace(header, seq=self._out.number), length)
        seal = self._out.next(header.type)
        seal.update(raw)
        ready: list[bytes | memoryview] = [raw]
        for piece in _pieces(payload):
            for part in piece:
                seal.update(part)
            self._send_all([*ready, *piece], deadline_s)
            ready = []
        tag = seal.tag()
        self._send_all([*ready, tag], deadline_s)
        return tag

    def send_json(self, kind: FrameType, content: dict[str, Any]) -> None:
        """Send a control frame."""
        self.send(Header(kind), [json.dumps(content, separators=(",", ":")).encode()])

    def _sending(self, length: int) -> float:
        """Return the deadline of a frame that is sent now.

        It is also the limit of each call, which is set only here: calls are many.
        """
        deadline_s = frame_socket.deadline_s(self._idle_s, length)
        seconds, rest_s = divmod(_left_s(deadline_s), 1.0)
        limit = struct.pack("ll", int(seconds), max(1000, int(rest_s * 1e6)))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return deadline_s

    def _send_all(self, parts: list[bytes | memoryview], deadline_s: float) -> None:
        left = sum(map(len, parts))
        while left:
            _left_s(deadline_s)
            try:
                sent = self._sock.sendmsg(parts)
            except BlockingIOError:
                raise TimeoutError("timed out") from None
            left -= sent
            if left:
                parts = _after(parts, sent)

    def answered(self) -> bool:
        """Return whether the peer has sent something, or has gone."""
        return bool(self._readable.poll(0))

    # ---- receiving ----

    def header(self) -> Header:
        """Read the next header, which counts only once its frame has been read by `control` or
        `into`.

        Raises FrameError or OSError.
        """
        self._raw = self._receive(frames.HEADER_2_BYTES, frame_socket.deadline_s(self._idle_s, 0))
        return self._next_header()

    def _next_header(self) -> Header:
        header = frames.decode_header_2(self._raw)
        if header.seq != self._into.number:
            raise FrameError(f"frame {header.seq} came where {self._into.number} was due")
        return header

    def control(self, header: Header) -> bytes:
        """Read and return the verified payload of a control frame. Raises FrameError or OSError."""
        payload = bytearray(header.length_bytes)
        self.into(header, [memoryview(payload)] if payload else [])
        return bytes(payload)

    def answer(self) -> tuple[FrameType, bytes]:
        """Read the peer's answer and return its type and its payload.

        A peer that refuses BEGIN says so by an ERROR of version 1, since there are no keys yet.

        Raises FrameError or OSError.
        """
        deadline_s = frame_socket.deadline_s(self._idle_s, 0)
        self._raw = self._receive(frames.HEADER_2_BYTES, deadline_s)
        if not self._raw.startswith(frames.MAGIC):
            header = self._next_header()
            return header.type, self.control(header)
        raw = self._raw + self._receive(frames.HEADER_BYTES - len(self._raw), deadline_s)
        header = frames.decode_header(raw)
        if header.type is not FrameType.ERROR:
            raise FrameError(f"unexpected {header.type.name}")
        payload = self._receive(header.length_bytes, deadline_s)
        frames.check_crc(raw, [payload], header.crc32)
        return header.type, payload

    def into(self, header: Header, views: Sequence[memoryview]) -> bytes:
        """Read a payload into `views` (`header.length_bytes` in all), verify it and return its tag.

        Raises FrameError or OSError.
        """
        deadline_s = frame_socket.deadline_s(self._idle_s, header.length_bytes)
        seal = self._into.next(header.type)
        seal.update(self._raw)
        left = header.length_bytes
        for piece in _pieces(views):
            left = self._receive_piece(piece, left, deadline_s, seal)
        given = self._receive(TAG_BYTES, deadline_s)
        tag = seal.tag()
        if not hmac.compare_digest(tag, given):
            raise FrameError("checksum mismatch")
        return tag

    def _receive(self, n: int, deadline_s: float) -> bytes:
        """Read n bytes."""
        out = bytearray(n)
        self._wake_at(1)
        self._receive_all([memoryview(out)], deadline_s, None)
        return bytes(out)

    def _receive_piece(self, piece: list[memoryview], left: int, deadline_s: float, seal: Seal) -> int:
        """Fill a piece of a payload of which `left` bytes are missing, and return what is missing
        then.
        """
        size = sum(map(len, piece))
        if left >= _WAKE_BYTES and not self._window_is_large:
            # The kernel makes room for what is waited for, and keeps it.
            self._wake_at(_WINDOW_BYTES)
            self._window_is_large = True
        # To be woken only by more than is still to come would be never.
        self._wake_at(min(_WAKE_BYTES, left))
        self._receive_all(piece, deadline_s, seal)
        return left - size

    def _receive_all(self, views: list[memoryview], deadline_s: float, seal: Seal | None) -> None:
        left = sum(map(len, views))
        while left:
            if not self._readable.poll(math.ceil(1000 * _left_s(deadline_s))):
                raise TimeoutError("timed out")
            try:
                got = self._sock.recvmsg_into(views, 0, socket.MSG_DONTWAIT)[0]
            except BlockingIOError:
                continue  # It was woken for nothing, and waits again until the deadline.
            if got == 0:
                raise ConnectionError("the peer closed the connection")
            left -= got
            if seal is not None:
                _update(seal, views, got)
            if left:
                views = _after(views, got)
                if left < self._wake_bytes:
                    self._wake_at(left)

    def part(self, linger_s: float) -> None:
        """Stop sending, and discard what the peer still sends for at most `linger_s`."""
        self._wake_at(1)
        frame_socket.part(self._sock, linger_s)

    def _wake_at(self, n: int) -> None:
        if n != self._wake_bytes:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n)
            self._wake_bytes = n


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s


def _pieces(views: Sequence[Any]) -> Iterator[list[Any]]:
    """Yield the views in groups of at most _PIECE_BYTES; a larger view is cut."""
    piece: list[Any] = []
    size = 0
    for view in views:
        rest = view
        while size + len(rest) > _PIECE_BYTES:
            if size == 0:
                yield [memoryview(rest)[:_PIECE_BYTES]]
                rest = memoryview(rest)[_PIECE_BYTES:]
            else:
                yield piece
                piece, size = [], 0
        if len(rest):
            piece.append(rest)
            size += len(rest)
        if len(piece) == frame_socket.MAX_PARTS - 2:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


def _after(parts: list[Any], n: int) -> list[Any]:
    """Return what is left of the parts behind their first n bytes."""
    for i, part in enumerate(parts):
        if n < len(part):
            return [memoryview(part)[n:], *parts[i + 1 :]]
        n -= len(part)
    return []


def _update(seal: Seal, views: Sequence[memoryview], n: int) -> None:
    """Add the first n bytes of the views to a tag."""
    for view in views:
        seal.update(view if n >= len(view) else view[:n])
        n -= len(view)
        if n <= 0:
            return
