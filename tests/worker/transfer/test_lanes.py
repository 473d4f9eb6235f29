"""Tests of the sender of bound transfers on real sockets, over one connection and over several."""

from __future__ import annotations

import dataclasses
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.worker.transfer.bound_rig import CRC, MAC
from tests.worker.transfer.rig import (
    FIRST,
    KEY,
    LAYOUT,
    SOURCE,
    TOKENS,
    VOCAB,
    Memory,
    big_block,
    layer_blocks,
    rig,
    until,
)
from tests.worker.transfer.sending import Sending

from disagg_protocol.events import ErrorEvent
from disagg_protocol.ticket import Ticket, sign
from disagg_worker.transfer import lanes
from disagg_worker.transfer.frame_socket import FrameSocket, parse_json
from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.greeting import session_keys
from disagg_worker.transfer.listener import KvListener
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer
from disagg_worker.transfer.sender_timeouts import SenderTimeouts


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make frames of one block, and further connections worth it at once."""
    monkeypatch.setattr(lanes, "FRAME_BYTES", LAYOUT.layer_block_bytes)
    monkeypatch.setattr(lanes, "_HELP_FROM_BYTES", 1)


@contextmanager
def deaf_peer() -> Iterator[tuple[Ticket, socket.socket]]:
    """Yield a bound ticket and the socket of a decode worker whose role the test plays."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        port = server.getsockname()[1]
        ticket = Ticket("ab" * 16, "r", 0, "c", "d/e", "127.0.0.1", port, len(TOKENS), "", 30.0, **MAC)
        yield sign(KEY, ticket), server


def greet(server: socket.socket, key: bytes = KEY) -> tuple[socket.socket, SealedSocket]:
    """Accept a connection, send CHALLENGE and read BEGIN."""
    sock, _ = server.accept()
    plain = FrameSocket(sock, 10)
    plain.send(Header(FrameType.CHALLENGE), [b"c" * 32])
    raw, header = plain.header()
    content = parse_json(plain.control(raw, header))
    keys = session_keys(key, b"c" * 32, content["proof"])
    return sock, SealedSocket(sock, 10, Sealer(keys.to_prefill, "mac"), Sealer(keys.to_decode, "mac"))


def read(link: SealedSocket) -> FrameType:
    header = link.header()
    link.control(header)
    return header.type


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("bound", [MAC, CRC], ids=["mac", "crc32c"])
@pytest.mark.parametrize("connections", [1, 2, 4])
def test_layers_arrive_whole_over_any_number_of_connections(bound: dict[str, str], connections: int) -> None:
    with rig() as r:
        session = r.announce(**bound)
        sending = Sending(session.ticket, connections)
        sending.all()
        done = sending.end()
        assert (done.error, done.kv_bytes, done.interface) == (None, len(SOURCE.bytes), "lo")
        assert done.transfer_s >= done.exposed_s > 0
        received = r.outcome()
        assert isinstance(received, Received)
        assert (received.kv_bytes, received.first_token) == (done.kv_bytes, FIRST.token)
        assert isinstance(session.reservation, Memory)
        assert session.reservation.bytes == SOURCE.bytes
        r.serves_the_next()


@pytest.mark.usefixtures("eager")
def test_several_connections_share_the_layers() -> None:
    """The first connection is not read until the other one has sent all the rest."""
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 2)
        big = big_block(16 << 20)
        for i in range(3):
            sending.sender.layer_ready(0, i, big)
        sending.sender.commit(FIRST)
        first_sock, first = greet(server)
        second_sock, second = greet(server)
        with first_sock, second_sock:
            assert [read(second) for _ in range(3)] == [FrameType.LAYER, FrameType.LAYER, FrameType.END]
            kinds = [read(first)]
            while kinds[-1] is not FrameType.COMMIT:
                kinds.append(read(first))
            assert [kind for kind in kinds if kind is not FrameType.PROGRESS] == [FrameType.LAYER, FrameType.COMMIT]
            first.send_json(FrameType.ACK, {})
            done = sending.end()
            assert (done.error, done.kv_bytes) == (None, 3 * (16 << 20))


@pytest.mark.usefixtures("eager")
def test_a_transfer_goes_on_if_no_further_connection_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    r = KvListener("127.0.0.1", 0, KEY, LAYOUT, VOCAB, max_connections=1)
    with rig() as other:
        other.listener.close()
        other.listener = r
        session = other.announce(**MAC)
        sending = Sending(session.ticket, 4)
        # As long as it has shown no ticket, a connection gives way to another.
        with monkeypatch.context() as alone:
            alone.setattr(lanes, "_HELP_FROM_BYTES", math.inf)
            sending.sender.layer_ready(0, 0, layer_blocks())
            until(lambda: r.begun(session))
        for layer in range(1, LAYOUT.layers):
            sending.sender.layer_ready(layer, 0, layer_blocks())
        sending.sender.commit(FIRST)
        assert sending.end().error is None
        assert isinstance(other.outcome(), Received)


def test_the_peers_reason_is_passed_on() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        r.listener.cancel(session)
        sending = Sending(session.ticket)
        sending.all()
        assert "unknown, used, expired or cancelled" in sending.error().message


@pytest.mark.usefixtures("eager")
def test_a_peer_that_breaks_off_is_heard_at_once() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(peer_s=60))
        sending.sender.layer_ready(0, 0, layer_blocks())
        sock, link = greet(server)
        with sock:
            read(link)
            link.send_json(FrameType.ERROR, {"code": "transfer_failed", "message": "no more"})
            threading.Event().wait(0.05)
            sending.sender.layer_ready(1, 0, layer_blocks())
            assert "transfer_failed: no more" in sending.error().message


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("which", [0, 1])
def test_a_connection_that_breaks_ends_the_transfer(which: int) -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 2, SenderTimeouts(peer_s=60, progress_s=0.05))
        for layer in range(LAYOUT.layers):
            sending.sender.layer_ready(layer, 0, layer_blocks())
        greeted = [greet(server), greet(server)]
        greeted[which][0].close()
        assert sending.error().code == "transfer_failed"
        greeted[1 - which][0].close()


def test_an_acknowledgement_of_someone_without_the_key_does_not_count() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket)
        sending.all()
        sock, link = greet(server, key=b"x" * 32)
        with sock:
            link.send_json(FrameType.ACK, {"kv_bytes": 1})
            assert "checksum" in sending.error().message


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("connections", [1, 3])
def test_cancel_ends_every_connection(connections: int) -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, connections, SenderTimeouts(peer_s=60))
        sending.all()
        socks = [greet(server)[0]]
        try:
            sending.sender.cancel()
            sending.sender.cancel()
            assert sending.error().code == "cancelled"
        finally:
            for sock in socks:
                sock.close()


@pytest.mark.usefixtures("eager")
def test_cancel_ends_sends_that_the_peer_does_not_read() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 2, SenderTimeouts(peer_s=60))
        big = big_block(8 << 20)
        for i in range(4):
            sending.sender.layer_ready(0, i, big)
        greeted = [greet(server), greet(server)]
        for sock, _ in greeted:
            sock.recv(1)
        sending.sender.cancel()
        assert sending.error().code == "cancelled"
        for sock, _ in greeted:
            sock.close()


@pytest.mark.parametrize("greets", [False, True])
def test_a_peer_that_never_answers_is_given_up(greets: bool) -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(peer_s=1.0 if greets else 0.2))
        sending.all()
        sock = greet(server)[0] if greets else server.accept()[0]
        with sock:
            assert "timed out" in sending.error().message


def test_while_it_computes_the_peer_hears_that_it_lives() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(progress_s=0.02))
        sending.sender.layer_ready(0, 0, layer_blocks())
        sock, link = greet(server)
        with sock:
            assert [read(link) for _ in range(3)] == [FrameType.LAYER, FrameType.PROGRESS, FrameType.PROGRESS]
            sending.sender.abort(ErrorEvent("finished", "the first token ended the request", retryable=False))
            while (kind := read(link)) is FrameType.PROGRESS:
                pass
            assert kind is FrameType.ERROR
            assert sending.error().code == "finished"


def test_a_peer_that_does_not_greet_is_refused() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket)
        sending.all()
        sock, _ = server.accept()
        with sock:
            FrameSocket(sock, 10).send(Header(FrameType.PROGRESS))
            assert "expected CHALLENGE" in sending.error().message


def test_a_ticket_for_other_terms_is_refused_by_the_peer() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        sending = Sending(sign(KEY, dataclasses.replace(session.ticket, tokens=9)))
        sending.all()
        assert "unknown" in sending.error().message
        r.listener.cancel(session)
        r.serves_the_next()
