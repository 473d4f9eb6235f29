"""Tests of the listener on real sockets: whatever a peer does, blocks are freed at once, nothing
that is received in part is used, and the next transfer works.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import threading
import time
from typing import Any

import pytest
from tests.worker.transfer.rig import (
    KEY,
    LAYOUT,
    SOURCE,
    TOKENS,
    VOCAB,
    Memory,
    Peer,
    Rig,
    io_bytes,
    layer_header,
    layer_payload,
    rig,
    whole_stream,
)

from disagg_protocol.ticket import sign
from disagg_worker.transfer.frames import MAX_PAYLOAD_BYTES, FrameType, Header
from disagg_worker.transfer.listener import KvListener, Phase
from disagg_worker.transfer.received import Received


def test_what_is_sent_lies_in_the_reserved_blocks() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_all()
            assert peer.answer() == (FrameType.ACK, {"kv_bytes": len(SOURCE.bytes)})
        r.arrived(session)
        r.serves_the_next()


@pytest.mark.parametrize("where", [0.0, 0.25, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_connection_cut_at_any_byte_frees_the_blocks_at_once(where: float, how: str) -> None:
    with rig() as r:
        session = r.announce()
        peer = Peer(session.ticket)
        begin = len(io_bytes(Header(FrameType.BEGIN), json.dumps(peer.begin()).encode()))
        stream = whole_stream(peer)
        cut = begin + int(where * (len(stream) - begin))
        peer.sock.sendall(stream[:cut])
        # Only a transfer that has begun can be cut, so wait until the ticket has been used.
        deadline_s = time.monotonic() + 10
        while not r.listener.begun(session) and time.monotonic() < deadline_s:
            threading.Event().wait(0.002)
        peer.reset() if how == "reset" else peer.sock.close()
        assert r.failure(session)[0] == "transfer_failed"
        r.serves_the_next()


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_a_layer_fails_the_transfer(where: float) -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            stream = bytearray(io_bytes(layer_header(0, 0), b"".join(layer_payload(0))))
            stream[28 + int(where * (len(stream) - 32))] ^= 4
            peer.sock.sendall(stream)
            kind, answer = peer.answer()
            assert kind is FrameType.ERROR
            assert "checksum" in answer["message"]
        assert "checksum" in r.failure(session)[1]
        r.serves_the_next()


def _refused(r: Rig, peer: Peer, **change: Any) -> str:
    peer.send_begin(**change)
    kind, answer = peer.answer()
    assert kind is FrameType.ERROR
    assert answer["code"] == "ticket_refused"
    return str(answer["message"])


def test_a_forged_ticket_is_refused_and_the_real_one_still_works() -> None:
    with rig() as r:
        session = r.announce()
        for mac in ("0" * 64, "é", "\ud800", ""):
            with Peer(session.ticket) as peer:
                assert "mac" in _refused(r, peer, ticket=session.ticket.to_json() | {"mac": mac})
        with Peer(session.ticket) as peer:
            peer.send_all()
            assert peer.answer()[0] is FrameType.ACK
        r.outcome()
        r.serves_the_next()


@pytest.mark.parametrize(
    "change",
    [
        {"proof": "0" * 64},
        {"proof": None},
        {"proof": "é"},
        {"proof": "\ud800"},
        {"ticket": None},
        {"ticket": {"transfer_id": "\ud800"}},
    ],
)
def test_a_peer_without_the_key_is_refused_before_its_ticket_is_read(change: dict[str, Any]) -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            assert "proof" in _refused(r, peer, **change)
        assert not r.listener.begun(session)
        r.listener.cancel(session)
        r.serves_the_next()


def test_a_proof_is_good_for_one_connection_only() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as first, Peer(session.ticket) as second:
            assert "proof" in _refused(r, second, proof=first.begin()["proof"])
        r.listener.cancel(session)
        r.serves_the_next()


def test_a_ticket_is_good_for_one_use() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_all()
            peer.answer()
        r.outcome()
        with Peer(session.ticket) as again:
            assert "unknown, used" in _refused(r, again)
        r.serves_the_next()


def test_a_ticket_signed_for_other_terms_under_the_same_id_is_refused() -> None:
    with rig() as r:
        session = r.announce()
        other = sign(KEY, dataclasses.replace(session.ticket, epoch=9))
        with Peer(other) as peer:
            assert "unknown" in _refused(r, peer)
        assert not r.listener.begun(session)
        r.listener.cancel(session)
        r.serves_the_next()


def test_the_kv_of_other_tokens_is_not_taken() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_all(tokens=[*TOKENS[:-1], 63])
            assert "token_hash" in peer.answer()[1]["message"]
        assert "token_hash" in r.failure(session)[1]
        r.serves_the_next()


@pytest.mark.parametrize("after_layers", [0, 2])
def test_a_silent_sender_loses_its_blocks(after_layers: int) -> None:
    with rig(idle_s=0.2) as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            for i in range(after_layers):
                peer.link.send(layer_header(i, i), layer_payload(i))
            assert "timed out" in r.failure(session)[1]
        r.serves_the_next()


def test_a_sender_that_drips_bytes_is_as_good_as_silent() -> None:
    with rig(idle_s=0.3) as r:
        session = r.announce()
        stopped = threading.Event()

        def drip(peer: Peer) -> None:
            data = io_bytes(layer_header(0, 0), b"".join(layer_payload(0)))
            for i in range(len(data)):
                if stopped.wait(0.05):
                    return
                try:
                    peer.sock.send(data[i : i + 1])
                except OSError:
                    return

        with Peer(session.ticket) as peer:
            peer.send_begin()
            thread = threading.Thread(target=drip, args=(peer,))
            thread.start()
            assert "timed out" in r.failure(session)[1]
            stopped.set()
            thread.join()
        r.serves_the_next()


def test_progress_keeps_a_slow_computation_alive() -> None:
    with rig(idle_s=1.5) as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            for _ in range(18):
                assert r.outcomes.empty()
                peer.link.send(Header(FrameType.PROGRESS))
                threading.Event().wait(0.1)
            peer.link.send_json(FrameType.ERROR, {"code": "finished", "message": "enough", "retryable": False})
            assert "finished: enough" in r.failure(session)[1]
        r.serves_the_next()


_HEAD = struct.Struct("<4sBBHIIIII")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (_HEAD.pack(b"DKV1", FrameType.LAYER, 0, 0, 0, 0, 1, MAX_PAYLOAD_BYTES + 1, 0), "limit"),
        (_HEAD.pack(b"DKV1", FrameType.LAYER, 0, 0, 0, 0, 1, LAYOUT.layer_block_bytes + 1, 0), "bytes for 1 blocks"),
        (_HEAD.pack(b"DKV2", FrameType.LAYER, 0, 0, 0, 0, 1, 0, 0), "version 1"),
        (_HEAD.pack(b"DKV1", FrameType.LAYER, 0, 0, 0, 3, 1, LAYOUT.layer_block_bytes, 0), "blocks 3"),
        (_HEAD.pack(b"DKV1", FrameType.LAYER, 0, 3, 0, 0, 1, LAYOUT.layer_block_bytes, 0), "layer 3"),
        (io_bytes(Header(FrameType.ACK), b"{}"), "unexpected ACK"),
        (io_bytes(Header(FrameType.COMMIT), b"no json"), "not JSON"),
        (io_bytes(Header(FrameType.COMMIT), b"[" * 60000), "not JSON"),
        (io_bytes(Header(FrameType.COMMIT), b"{}"), "commit.frames"),
    ],
)
def test_a_frame_that_breaks_the_rules_fails_the_transfer(raw: bytes, message: str) -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            peer.sock.sendall(raw)
            assert message in r.failure(session)[1]
        r.serves_the_next()


def test_cancel_before_the_ticket_was_used_frees_and_kills_the_ticket() -> None:
    with rig() as r:
        session = r.announce()
        r.listener.cancel(session)
        r.listener.cancel(session)
        assert isinstance(session.reservation, Memory)
        assert session.reservation.released.get_nowait()
        assert session.reservation.released.empty()
        with Peer(session.ticket) as peer:
            assert "cancelled" in _refused(r, peer)
        r.serves_the_next()


def test_cancel_while_receiving_frees_at_once() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            deadline_s = time.monotonic() + 10
            while not r.listener.begun(session) and time.monotonic() < deadline_s:
                threading.Event().wait(0.002)
            r.listener.cancel(session)
            assert r.failure(session)[0] == "cancelled"
        r.serves_the_next()


def test_cancel_after_the_engine_took_it_does_not_lose_the_acknowledgement() -> None:
    """Cancel after the commit: a request of two tokens can end, and its stream with it, before the
    acknowledgement is sent.
    """
    with rig() as r:
        session = r.announce()

        def cancel_and_tell(received: Received) -> None:
            r.listener.cancel(session)
            r.outcomes.put(received)

        session.on_commit = cancel_and_tell
        with Peer(session.ticket) as peer:
            peer.send_all()
            assert peer.answer()[0] is FrameType.ACK
        assert isinstance(r.outcome(), Received)
        assert isinstance(session.reservation, Memory)
        assert session.reservation.released.empty()
        assert session.phase is Phase.TAKEN
        r.serves_the_next()


def test_an_engine_that_refuses_the_kv_fails_the_transfer() -> None:
    with rig() as r:
        session = r.announce()

        def refuse(_: Received) -> None:
            raise ValueError("the worker is stopping")

        session.on_commit = refuse
        with Peer(session.ticket) as peer:
            peer.send_all()
            assert peer.answer()[1] == {"code": "not_accepted", "message": "the worker is stopping", "retryable": True}
        assert r.failure(session) == ("not_accepted", "the worker is stopping")
        r.serves_the_next()


def test_strangers_who_only_connect_shut_nobody_out() -> None:
    with rig() as r:
        held = [socket.create_connection((r.listener.host, r.listener.port), timeout=10) for _ in range(30)]
        r.serves_the_next()
        for sock in held:
            sock.close()


def test_nobody_who_has_shown_a_ticket_is_closed_for_another_one() -> None:
    with rig() as r:
        session = r.announce()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            while not r.listener.begun(session):
                time.sleep(0.005)
            held = [socket.create_connection((r.listener.host, r.listener.port), timeout=10) for _ in range(30)]
            peer.send_all(begun=True)
            assert peer.answer()[0] == FrameType.ACK
        assert isinstance(r.outcome(), Received)
        for sock in held:
            sock.close()


def test_the_listener_is_bound_to_the_given_address_only() -> None:
    listener = KvListener("127.0.0.2", 0, KEY, LAYOUT, VOCAB)
    try:
        assert listener._server.getsockname() == ("127.0.0.2", listener.port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", listener.port), timeout=5)
    finally:
        listener.close()
