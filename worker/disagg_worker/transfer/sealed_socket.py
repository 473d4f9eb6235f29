"""Frames of version 2 over a blocking socket.

Payloads are gathered from and scattered to the cache by one or two calls for a frame, in which the
kernel waits for what is missing: each return to Python costs a wake-up and, in a decode worker, a
fight with the engine's thread for the interpreter.
"""

from __future__ import annotations

import hmac
import json
import math
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from disagg_worker.transfer import frame_socket, frames
from disagg_worker.transfer.frames import TAG_BYTES, FrameError, FrameType, Header
from disagg_worker.transfer.link_silence import INFO_BYTES, LinkSilence, parse
from disagg_worker.transfer.seals import Seal, Sealer

# A receiver that waits for a large payload is woken when so much has come, not for every packet.
_WAKE_BYTES = 256 << 10
# The window must be larger than that, or the sender would wait for a part of it to be read.
_WINDOW_BYTES = 4 * _WAKE_BYTES
# How often it is looked, while a call waits, whether the other end is still there.
_LOOK_S = 0.2


class SealedSocket:
    """One connection of a transfer, once BEGIN has been sent or verified.

    A frame has `idle_s` and what its size needs at the least rate. No call is begun after that, and
    none takes longer than it. If nothing acknowledges for `silence_s` what was sent, nothing is
    waited for.
    """

    def __init__(
        self, sock: socket.socket, idle_s: float, out: Sealer, into: Sealer, silence_s: float | None = None
    ) -> None:
        sock.settimeout(None)
        self._sock = sock
        self._idle_s = idle_s
        self._out = out
        self._into = into
        self._silence = None if silence_s is None else LinkSilence(silence_s)
        self._look_s = math.inf if silence_s is None else _LOOK_S
        self._wake_bytes = 0
        self._window_is_large = False
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._wake_at(1)

    # ---- sending ----

    def send(self, header: Header, payload: Sequence[bytes | memoryview] = ()) -> bytes:
        """Send one frame with the next number, and return its tag. Raises OSError."""
        length = sum(map(len, payload))
        deadline_s = frame_socket.deadline_s(self._idle_s, length)
        raw = frames.encode_header_2(replace(header, seq=self._out.number), length)
        seal = self._out.next(header.type)
        _update(seal, (raw, *payload))
        tag = seal.tag()
        self._send_all([raw, *payload, tag], deadline_s)
        self._look()
        return tag

    def send_json(self, kind: FrameType, content: dict[str, Any]) -> None:
        """Send a control frame."""
        self.send(Header(kind), [json.dumps(content, separators=(",", ":")).encode()])

    def _send_all(self, parts: list[bytes | memoryview], deadline_s: float) -> None:
        while parts:
            self._limit(socket.SO_SNDTIMEO, min(deadline_s, time.monotonic() + self._look_s))
            some = parts[: frame_socket.MAX_PARTS]
            try:
                sent = self._sock.sendmsg(some)
            except BlockingIOError:
                frame_socket.left_s(deadline_s)
                self._look()
                continue
            parts = _after(some, sent) + parts[frame_socket.MAX_PARTS :]

    def _look(self) -> None:
        """Raise TimeoutError if nobody acknowledges what was sent."""
        if self._silence is None:
            return
        found = parse(self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES))
        if found is not None and self._silence.look(found, time.monotonic()):
            raise TimeoutError("the network to the peer is silent")

    def _limit(self, option: int, deadline_s: float) -> None:
        """Let the next call end at the deadline, with what it has moved until then."""
        seconds, rest_s = divmod(frame_socket.left_s(deadline_s), 1.0)
        limit = struct.pack("ll", int(seconds), max(1000, int(rest_s * 1e6)))
        self._sock.setsockopt(socket.SOL_SOCKET, option, limit)

    def answered(self) -> bool:
        """Return whether the peer has sent something, or has gone."""
        self._wake_at(1)
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
        if header.length_bytes >= _WAKE_BYTES and not self._window_is_large:
            # The kernel makes room for what is waited for, and keeps it.
            self._wake_at(_WINDOW_BYTES)
            self._window_is_large = True
        given = bytearray(TAG_BYTES)
        early, late = _split(views, header.length_bytes - _WAKE_BYTES)
        if early:
            self._receive_most(early, deadline_s)
            _update(seal, early)
        self._receive_all([*late, memoryview(given)], deadline_s)
        _update(seal, late)
        tag = seal.tag()
        if not hmac.compare_digest(tag, given):
            raise FrameError("checksum mismatch")
        return tag

    def _receive(self, n: int, deadline_s: float) -> bytes:
        """Read n bytes."""
        out = bytearray(n)
        self._receive_all([memoryview(out)], deadline_s)
        return bytes(out)

    def _receive_most(self, views: list[memoryview], deadline_s: float) -> None:
        """Fill views behind which at least _WAKE_BYTES more are to come in the same frame."""
        self._wake_at(_WAKE_BYTES)
        while views:
            self._limit(socket.SO_RCVTIMEO, deadline_s)
            views = self._received(views, socket.MSG_WAITALL)

    def _receive_all(self, views: list[memoryview], deadline_s: float) -> None:
        """Fill views behind which nothing more may come.

        Nothing is taken before everything is there: a call that has taken a part would wait for
        more than is still to come.
        """
        while views:
            self._wake_at(min(_WAKE_BYTES + TAG_BYTES, sum(map(len, views))))
            while not self._readable.poll(math.ceil(1000 * min(self._look_s, frame_socket.left_s(deadline_s)))):
                self._look()
            views = self._received(views, socket.MSG_DONTWAIT)

    def _received(self, views: list[memoryview], flag: int) -> list[memoryview]:
        """Receive once, and return what is still to be filled."""
        try:
            got = self._sock.recvmsg_into(views[: frame_socket.MAX_PARTS], 0, flag)[0]
        except BlockingIOError:
            return views  # It was woken for nothing, or its time is over.
        if got == 0:
            raise ConnectionError("the peer closed the connection")
        return _after(views, got)

    def part(self, linger_s: float) -> None:
        """Stop sending, and discard what the peer still sends for at most `linger_s`."""
        self._wake_at(1)
        frame_socket.part(self._sock, linger_s)

    def _wake_at(self, n: int) -> None:
        if n != self._wake_bytes:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n)
            self._wake_bytes = n


def _split(views: Sequence[memoryview], n: int) -> tuple[list[memoryview], list[memoryview]]:
    """Return the first n bytes of the views, and what is behind them."""
    if n <= 0:
        return [], list(views)
    late = _after(list(views), n)
    early = list(views[: len(views) - len(late)])
    size = sum(map(len, early))
    if size < n:
        early.append(views[len(early)][: n - size])
    return early, late


def _after(parts: list[Any], n: int) -> list[Any]:
    """Return what is left of the parts behind their first n bytes."""
    for i, part in enumerate(parts):
        if n < len(part):
            return [memoryview(part)[n:], *parts[i + 1 :]]
        n -= len(part)
    return []


def _update(seal: Seal, parts: Iterable[bytes | memoryview]) -> None:
    """Add parts to a tag."""
    update = seal.update
    for part in parts:
        update(part)
