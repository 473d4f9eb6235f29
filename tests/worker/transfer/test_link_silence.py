"""Tests of when a network is taken to be cut, by what the kernel knows and with a cut network."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.fakes.far_network import far_server, needs_network

from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.link_silence import INFO_BYTES, Acknowledged, LinkSilence, parse
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer

IDLE, WAITS = Acknowledged(False, 100.0), Acknowledged(True, 100.0)
A, B = b"a" * 16, b"b" * 16


def test_a_connection_that_was_idle_for_long_is_not_silent_when_something_is_sent() -> None:
    silence = LinkSilence(1.0)
    assert not silence.look(IDLE, 0.0)
    assert not silence.look(WAITS, 50.0)
    assert not silence.look(WAITS, 51.0)
    assert silence.look(WAITS, 51.1)
    assert not silence.look(IDLE, 51.2)


def test_each_acknowledgement_counts_however_seldom_it_is_looked() -> None:
    silence = LinkSilence(1.0)
    for now_s in range(0, 100, 5):
        assert not silence.look(Acknowledged(True, 2.0), float(now_s))
    assert silence.look(Acknowledged(True, 5.1), 100.0)


def test_what_the_kernel_says() -> None:
    raw = bytearray(INFO_BYTES)
    struct.pack_into("=I", raw, 24, 3)
    struct.pack_into("=I", raw, 56, 1500)
    assert parse(bytes(raw)) == Acknowledged(True, 1.5)
    assert parse(bytes(raw[:-1])) is None
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        sock.sendall(b"x")
        found = parse(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, INFO_BYTES))
    assert found is not None
    assert found.last_s < 60


@contextmanager
def cut_link() -> Iterator[SealedSocket]:
    """Yield one end of a connection over which nothing goes any more."""
    with far_server() as (server, cut), socket.create_connection(server.getsockname(), timeout=10) as sock:
        far, _ = server.accept()
        with far:
            cut()
            yield SealedSocket(sock, 60, Sealer(A, "mac"), Sealer(B, "mac"), 0.5)


def _large(link: SealedSocket) -> None:
    link.send(Header(FrameType.LAYER), [bytes(16 << 20)])


def _small(link: SealedSocket) -> None:
    while True:
        link.send(Header(FrameType.PROGRESS))


def _answered(link: SealedSocket) -> None:
    link.send_json(FrameType.COMMIT, {})
    link.answer()


@needs_network
@pytest.mark.parametrize("waits", [_large, _small, _answered])
def test_a_network_that_is_cut_is_noticed_long_before_the_frame_is_due(waits: object) -> None:
    """A frame has 60 s, and more for its size."""
    assert callable(waits)
    with cut_link() as link, pytest.raises(TimeoutError, match="silent"):
        waits(link)


def test_a_peer_that_reads_nothing_is_slow_and_not_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        far, _ = server.accept()
        with far, pytest.raises(TimeoutError, match="timed out"):
            SealedSocket(sock, 1.0, Sealer(A, "mac"), Sealer(B, "mac"), 0.3)._send_all(
                [bytes(64 << 20)], time.monotonic() + 1.0
            )
