"""Tests of the sender on real sockets: it sends layers as they come, reports its end exactly once,
and never outlives a cancel.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.worker.transfer.rig import BLOCKS, FIRST, KEY, LAYOUT, SOURCE, TOKENS, Memory, big_block, layer_blocks, rig
from tests.worker.transfer.sending import Sending

from disagg_protocol.events import ErrorEvent
from disagg_protocol.ticket import Ticket, sign
from disagg_worker.transfer.frame_socket import FrameSocket
from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender_timeouts import SenderTimeouts


@contextmanager
def deaf_peer() -> Iterator[tuple[Ticket, socket.socket]]:
    """Yield a ticket and the socket of a decode worker whose role the test plays."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        ticket = Ticket("ab" * 16, "r", 0, "c", "d/e", "127.0.0.1", server.getsockname()[1], len(TOKENS), "", 30.0)
        yield sign(KEY, ticket), server


def greet(server: socket.socket) -> tuple[socket.socket, FrameSocket]:
    """Accept a connection, send CHALLENGE and read BEGIN."""
    sock, _ = server.accept()
    link = FrameSocket(sock, 10)
    link.send(Header(FrameType.CHALLENGE), [b"c" * 32])
    raw, header = link.header()
    assert header.type is FrameType.BEGIN
    link.control(raw, header)
    return sock, link


def test_layers_arrive_whole_and_the_end_is_measured() -> None:
    with rig() as r:
        session = r.announce()
        sending = Sending(session.ticket)
        sending.all()
        done = sending.end()
        assert done.error is None
        assert (done.kv_bytes, done.interface) == (len(SOURCE.bytes), "lo")
        assert done.peer == f"127.0.0.1:{r.listener.port}"
        assert done.transfer_s > 0
        assert done.exposed_s > 0
        received = r.outcome()
        assert isinstance(received, Received)
        assert received.kv_bytes == done.kv_bytes
        assert isinstance(session.reservation, Memory)
        assert session.reservation.bytes == SOURCE.bytes


def test_blocks_may_come_chunk_by_chunk() -> None:
    with rig() as r:
        session = r.announce()
        sending = Sending(session.ticket)
        for first, last in ((0, 2), (2, BLOCKS)):
            for layer in range(LAYOUT.layers):
                sending.sender.layer_ready(layer, first, layer_blocks().part(first, last))
        sending.sender.commit(FIRST)
        assert sending.end().error is None
        assert isinstance(session.reservation, Memory)
        assert session.reservation.bytes == SOURCE.bytes


def test_a_peer_that_is_not_there_is_a_retryable_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sending = Sending(Ticket("ab" * 16, "r", 0, "c", "d/e", "127.0.0.1", port, 10, "", 30.0))
    sending.all()
    error = sending.error()
    assert (error.code, error.retryable) == ("transfer_failed", True)
    assert f"127.0.0.1:{port}" in error.message


def test_a_host_that_is_no_host_still_ends_the_transfer() -> None:
    sending = Sending(Ticket("ab" * 16, "r", 0, "c", "d/e", "a" * 70 + ".é", 1, 10, "", 30.0))
    sending.all()
    assert sending.error().code == "transfer_failed"


def test_the_peers_reason_is_passed_on() -> None:
    with rig() as r:
        session = r.announce()
        r.listener.cancel(session)
        sending = Sending(session.ticket)
        sending.all()
        assert "unknown, used, expired or cancelled" in sending.error().message


def test_the_commit_speaks_of_the_tokens_that_were_computed() -> None:
    with rig() as r:
        session = r.announce()
        sending = Sending(session.ticket, tokens=[*TOKENS[:-1], 63])
        sending.all()
        assert "token_hash" in sending.error().message
        assert isinstance(r.outcome(), tuple)


def test_while_it_computes_the_peer_hears_that_it_lives() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(progress_s=0.02))
        sending.layer(0)
        sock, link = greet(server)
        with sock:
            kinds = []
            for _ in range(3):
                raw, header = link.header()
                link.control(raw, header)
                kinds.append(header.type)
            assert kinds == [FrameType.LAYER, FrameType.PROGRESS, FrameType.PROGRESS]
            sending.sender.cancel()
            assert sending.error().code == "cancelled"


@pytest.mark.parametrize("greets", [False, True])
def test_a_peer_that_never_answers_is_given_up(greets: bool) -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(peer_s=1.0 if greets else 0.2))
        sending.all()
        sock = greet(server)[0] if greets else server.accept()[0]
        with sock:
            assert "timed out" in sending.error().message


def test_cancel_ends_the_wait_for_the_acknowledgement_at_once() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(peer_s=60))
        sending.all()
        sock, link = greet(server)
        with sock:
            while True:
                raw, header = link.header()
                link.control(raw, header)
                if header.type is FrameType.COMMIT:
                    break
            sending.sender.cancel()
            sending.sender.cancel()
            assert sending.error().code == "cancelled"
            assert sock.recv(1) == b""


def test_cancel_ends_a_send_that_the_peer_does_not_read() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket, 1, SenderTimeouts(peer_s=60))
        big = big_block(4 << 20)
        for i in range(8):
            sending.sender.layer_ready(0, i, big)
        sock, _ = greet(server)
        with sock:
            sock.recv(1)
            sending.sender.cancel()
            assert sending.error().code == "cancelled"


def test_cancel_before_the_connection_stands_sends_nothing() -> None:
    with deaf_peer() as (ticket, server):
        sending = Sending(ticket)
        sending.sender.cancel()
        sending.layer(0)
        assert sending.error().code == "cancelled"
        with server.accept()[0] as sock:
            sock.settimeout(10)
            assert sock.recv(1) == b""


def test_an_abort_tells_the_peer_why() -> None:
    with rig() as r:
        session = r.announce()
        sending = Sending(session.ticket)
        sending.layer(0)
        sending.sender.abort(ErrorEvent("finished", "the first token ended the request", retryable=False))
        assert sending.error().code == "finished"
        outcome = r.outcome()
        assert isinstance(outcome, tuple)
        assert "finished: the first token ended the request" in outcome[1]
        r.serves_the_next()


def test_an_abort_before_anything_was_sent_opens_no_connection() -> None:
    with deaf_peer() as (ticket, _):
        sending = Sending(ticket)
        sending.sender.abort(ErrorEvent("cancelled", "cancelled", retryable=False))
        assert sending.error().code == "cancelled"
        sending.layer(0)
        assert not [t for t in threading.enumerate() if t.name.startswith("kv-send")]


def test_a_ticket_for_other_terms_is_refused_by_the_peer() -> None:
    with rig() as r:
        session = r.announce()
        sending = Sending(sign(KEY, dataclasses.replace(session.ticket, tokens=9)))
        sending.all()
        assert "unknown" in sending.error().message
        r.listener.cancel(session)
        r.serves_the_next()
