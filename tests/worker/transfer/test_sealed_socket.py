"""Tests of frames of version 2 on a pair of sockets: payloads of every shape, and deadlines."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frames import HEADER_2_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, FrameError, FrameType, Header
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer

A, B = b"a" * 16, b"b" * 16


@contextmanager
def linked(integrity: str = "mac", idle_s: float = 10) -> Iterator[tuple[SealedSocket, SealedSocket]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        yield (
            SealedSocket(near, idle_s, Sealer(A, integrity), Sealer(B, integrity)),
            SealedSocket(far, idle_s, Sealer(B, integrity), Sealer(A, integrity)),
        )


def cut(data: bytearray, sizes: list[int]) -> list[memoryview]:
    """Return views of these sizes, over and over, that cover the data."""
    views: list[memoryview] = []
    at = 0
    while at < len(data):
        views.append(memoryview(data)[at : at + sizes[len(views) % len(sizes)]])
        at += len(views[-1])
    return views


@pytest.mark.parametrize("integrity", ["mac", "crc32c"])
@pytest.mark.parametrize(
    ("total", "out", "into"),
    [
        (3_000_000, [65536], [65536]),
        (3_000_001, [1_000_000], [70_000, 1]),
        (700_000, [100], [700_000]),
        (700_000, [700_000], [100]),
        (300, [1], [7]),
    ],
)
def test_payloads_of_every_shape_arrive(integrity: str, total: int, out: list[int], into: list[int]) -> None:
    sent, got = bytearray(os.urandom(total)), bytearray(total)
    with linked(integrity) as (near, far):
        header = Header(FrameType.LAYER, 1, 0, 2, 3)
        tags: list[bytes] = []
        thread = threading.Thread(target=lambda: tags.append(near.send(header, cut(sent, out))))
        thread.start()
        received = far.header()
        assert (received.type, received.layer, received.first_block, received.n_blocks) == (FrameType.LAYER, 1, 2, 3)
        tag = far.into(received, cut(got, into))
        thread.join()
        assert (got, tags) == (sent, [tag])
        # Whatever was waited for, a short frame afterwards is not waited for in vain.
        near.send_json(FrameType.COMMIT, {"a": 1})
        assert far.control(far.header()) == b'{"a":1}'
        assert not far.answered()
        near.send(Header(FrameType.PROGRESS))
        assert far.control(far.header()) == b""
        far.send(Header(FrameType.END))
        assert near.header().type is FrameType.END


@pytest.mark.parametrize("missing", [1, 20, 100_000, 299_999])
def test_the_last_bytes_may_come_late_and_alone(missing: int) -> None:
    with linked(idle_s=60) as (near, far), linked() as (recorder, tape):
        thread = threading.Thread(target=recorder.send, args=(Header(FrameType.LAYER), [os.urandom(600_000)]))
        thread.start()
        frame = tape._sock.recv(HEADER_2_BYTES + 600_000 + TAG_BYTES, socket.MSG_WAITALL)
        thread.join()
        near._sock.sendall(frame[:-missing])
        threading.Timer(0.1, near._sock.sendall, [frame[-missing:]]).start()
        got = bytearray(600_000)
        reader = threading.Thread(target=lambda: far.into(far.header(), [memoryview(got)]), daemon=True)
        reader.start()
        reader.join(10)
        assert not reader.is_alive()
    assert got == frame[HEADER_2_BYTES:-TAG_BYTES]


class Counted:
    """A socket that notes which of its methods are called."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return getattr(self._sock, name)


def test_a_frame_of_many_blocks_takes_one_call_to_send_and_three_to_receive(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, got = bytearray(os.urandom(4 << 20)), bytearray(4 << 20)
    with linked() as (near, far):
        out, into = Counted(near._sock), Counted(far._sock)
        monkeypatch.setattr(near, "_sock", out)
        monkeypatch.setattr(far, "_sock", into)
        thread = threading.Thread(target=near.send, args=(Header(FrameType.LAYER), cut(sent, [65536])))
        thread.start()
        far.into(far.header(), cut(got, [65536]))
        thread.join()
    assert got == sent
    # The header, the payload, and its end with the tag.
    assert (out.calls.count("sendmsg"), into.calls.count("recvmsg_into")) == (1, 3)


def test_a_tag_depends_on_the_frames_number() -> None:
    with linked() as (near, _):
        assert near.send(Header(FrameType.PROGRESS)) != near.send(Header(FrameType.PROGRESS))


def test_a_frame_cannot_be_sent_back() -> None:
    with linked() as (near, far):
        near.send(Header(FrameType.PROGRESS))
        far._sock.sendall(far._sock.recv(1000))
        with pytest.raises(FrameError, match="checksum"):
            near.control(near.header())


def test_nothing_over_the_limit_is_sent() -> None:
    with linked() as (near, _), pytest.raises(FrameError, match="limit"):
        near.send(Header(FrameType.LAYER), [memoryview(bytearray(MAX_PAYLOAD_BYTES)), b"x"])


def test_a_peer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_socket, "_MIN_BYTES_PER_S", 1 << 40)
    with linked(idle_s=0.2) as (near, _), pytest.raises(TimeoutError):
        near.send(Header(FrameType.LAYER), [memoryview(bytearray(MAX_PAYLOAD_BYTES))])


def test_a_frame_that_stops_in_its_payload_is_given_up() -> None:
    with linked(idle_s=0.2) as (near, far):
        near._sock.sendall(b"DKV2" + bytes([FrameType.COMMIT]) + bytes(15) + (8).to_bytes(4, "little") + b"ab")
        header = far.header()
        with pytest.raises(TimeoutError):
            far.control(header)


def test_what_is_still_sent_is_discarded_at_the_end() -> None:
    with linked() as (near, far):
        near.send(Header(FrameType.PROGRESS))
        far.send_json(FrameType.ERROR, {"code": "c"})
        threading.Timer(0.05, near._sock.shutdown, [socket.SHUT_WR]).start()
        far.part(10)
        assert near.control(near.header()) == b'{"code":"c"}'
        with pytest.raises(ConnectionError):
            near.header()
