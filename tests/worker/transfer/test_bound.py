"""Tests of bound transfers on real sockets: whatever a peer does on any of its connections, the
blocks are freed once, when nobody writes into them any more, and nothing unverified is used.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable

import pytest
from tests.worker.transfer.bound_rig import CRC, MAC, Lane
from tests.worker.transfer.rig import BLOCKS, LAYOUT, SOURCE, Memory, Peer, rig

from disagg_protocol.ticket import sign
from disagg_worker.transfer import frames
from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.listener import Session
from disagg_worker.transfer.received import Received

KINDS = pytest.mark.parametrize("bound", [MAC, CRC], ids=["mac", "crc32c"])


def joined(session: Session, connections: int) -> None:
    """Wait until the listener has read BEGIN of so many connections."""
    while len(session.socks) < connections:
        threading.Event().wait(0.002)


@KINDS
@pytest.mark.parametrize("shares", [[[0, 1, 2]], [[1], [2, 0]], [[], [0, 1, 2]], [[0], [1], [], [2]]])
def test_what_is_sent_over_several_connections_lies_in_the_blocks(
    bound: dict[str, str], shares: list[list[int]]
) -> None:
    with rig() as r:
        session = r.announce(**bound)
        lanes = [Lane(session.ticket, i).begin() for i in range(len(shares))]
        for lane, layers in reversed(list(zip(lanes, shares, strict=True))):
            lane.layers(layers)
            if lane.connection:
                lane.end()
        lanes[0].commit(*lanes[1:])
        assert lanes[0].answer() == (FrameType.ACK, {"kv_bytes": len(SOURCE.bytes)})
        r.arrived(session)
        for lane in lanes:
            lane.sock.close()
        r.serves_the_next()


def test_progress_keeps_every_connection_alive() -> None:
    with rig(idle_s=1.5) as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            for _ in range(18):
                first.link.send(Header(FrameType.PROGRESS))
                second.link.send(Header(FrameType.PROGRESS))
                threading.Event().wait(0.1)
            second.layers([0, 1, 2]).end()
            first.commit(second)
            assert first.answer()[0] is FrameType.ACK
        r.arrived(session)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


_HEAD, _LAYER_BYTES = frames.HEADER_2_BYTES, BLOCKS * LAYOUT.layer_block_bytes
# What an attacker, or a fault, makes of the first two frames of a connection.
DAMAGE: dict[str, Callable[[Lane], bytes]] = {
    "a bit of the payload": lambda lane: _flip(lane.layer_bytes(0, 0), _HEAD + _LAYER_BYTES // 2),
    "the first bit of the payload": lambda lane: _flip(lane.layer_bytes(0, 0), _HEAD),
    "the layer in the header": lambda lane: _flip(lane.layer_bytes(0, 0), 6).replace(b"\4\0", b"\1\0", 1),
    "the last byte of the tag": lambda lane: _flip(lane.layer_bytes(0, 0), -1),
    "a frame without its tag": lambda lane: lane.layer_bytes(0, 0)[: -frames.TAG_BYTES] + bytes(frames.TAG_BYTES),
    "a frame that is repeated": lambda lane: lane.layer_bytes(0, 0) * 2,
    "frames that are exchanged": lambda lane: b"".join(reversed([lane.layer_bytes(i, i) for i in range(2)])),
    "blocks that come twice": lambda lane: lane.layer_bytes(0, 0) + lane.layer_bytes(0, 1),
    "a layer outside of the cache": lambda lane: lane.sealed(Header(FrameType.LAYER, 3, 0, 0, 1), bytes(256)),
    "more blocks than reserved": lambda lane: lane.sealed(Header(FrameType.LAYER, 0, 0, 1, 3), bytes(_LAYER_BYTES)),
    "less than the blocks need": lambda lane: lane.sealed(Header(FrameType.LAYER, 0, 0, 0, 2), bytes(_LAYER_BYTES)),
    "a COMMIT that is no JSON": lambda lane: lane.sealed(Header(FrameType.COMMIT), b"["),
    "an empty COMMIT": lambda lane: lane.sealed(Header(FrameType.COMMIT), b"{}"),
    "a COMMIT with a CRC": lambda lane: lane.sealed(Header(FrameType.COMMIT), b"{}", FrameType.LAYER),
    "an END of the first connection": lambda lane: lane.sealed(Header(FrameType.END)),
    "an answer": lambda lane: lane.sealed(Header(FrameType.ACK), b"{}"),
    "frames of version 1": lambda lane: frames.encode_header(Header(FrameType.PROGRESS), [])[0],
    "noise": lambda lane: os.urandom(200),
}  # fmt: skip


@KINDS
@pytest.mark.parametrize("what", DAMAGE)
def test_damage_on_one_connection_fails_the_transfer_on_all(bound: dict[str, str], what: str) -> None:
    with rig() as r:
        session = r.announce(**bound)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            joined(session, 2)
            first.sock.sendall(DAMAGE[what](first))
            answers = [lane.answer() for lane in (first, second)]
            assert [kind for kind, _ in answers] == [FrameType.ERROR, FrameType.ERROR]
            assert answers[0] == answers[1]
        assert r.failure(session) == ("transfer_failed", answers[0][1]["message"])
        r.serves_the_next()


def test_a_frame_of_another_connection_is_not_taken() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            first.sock.sendall(second.layer_bytes(0, 0))
            assert "checksum" in first.answer()[1]["message"]
        r.failure(session)
        r.serves_the_next()


def test_a_peer_without_the_cluster_key_can_seal_nothing() -> None:
    """Whoever takes a connection over after BEGIN knows no session key."""
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as lane:
            stranger = Lane(session.ticket, key=b"x" * 32)
            lane.sock.sendall(stranger.layer_bytes(0, 0))
            assert "checksum" in lane.answer()[1]["message"]
            stranger.sock.close()
        r.failure(session)
        r.serves_the_next()


@pytest.mark.parametrize("how", ["half-close", "close", "reset"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("within", ["a frame", "the header", "nothing"])
def test_a_connection_that_ends_early_ends_the_others(how: str, which: int, within: str) -> None:
    with rig() as r:
        session = r.announce(**MAC)
        lanes = [Lane(session.ticket, i).begin().layers([i]) for i in range(2)]
        joined(session, 2)
        lost, other = lanes[which], lanes[1 - which]
        sent = {"a frame": _HEAD + 10, "the header": 5, "nothing": 0}[within]
        lost.sock.sendall(lost.layer_bytes(2, 1)[:sent])
        if how == "half-close":
            lost.sock.shutdown(socket.SHUT_WR)
        else:
            lost.reset() if how == "reset" else lost.sock.close()
        assert other.answer()[0] is FrameType.ERROR
        assert r.failure(session)[0] == "transfer_failed"
        for lane in lanes:
            lane.sock.close()
        r.serves_the_next()


def test_blocks_are_not_freed_while_a_connection_writes_into_them() -> None:
    """The frame of one connection is in the middle when another one fails."""
    with rig() as r:
        session = r.announce(**MAC)
        memory = session.reservation
        assert isinstance(memory, Memory)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            joined(session, 2)
            frame = first.layer_bytes(0, 0)
            first.sock.sendall(frame[: _HEAD + 100])
            second.sock.sendall(b"x" * _HEAD)
            r.failure(session)
            memory.bytes[:] = bytes(len(memory.bytes))
            first.sock.sendall(frame[_HEAD + 100 :])
            assert first.answer()[0] is FrameType.ERROR
        assert memory.bytes == bytes(len(memory.bytes))
        r.serves_the_next()


@pytest.mark.parametrize("silent", [0, 1])
@pytest.mark.parametrize("within", [0, _HEAD + 10])
def test_a_connection_that_falls_silent_loses_the_blocks(silent: int, within: int) -> None:
    with rig(idle_s=0.3) as r:
        session = r.announce(**MAC)
        lanes = [Lane(session.ticket, i).begin() for i in range(2)]
        joined(session, 2)
        lanes[silent].sock.sendall(lanes[silent].layer_bytes(0, 0)[:within])
        try:
            while r.outcomes.empty():
                lanes[1 - silent].link.send(Header(FrameType.PROGRESS))
                threading.Event().wait(0.05)
        except OSError:
            pass  # It has been told.
        assert "timed out" in r.failure(session)[1]
        for lane in lanes:
            lane.sock.close()
        r.serves_the_next()


def test_a_further_connection_alone_cannot_hold_the_blocks() -> None:
    with rig(idle_s=0.2) as r:
        session = r.announce(**MAC)
        with Lane(session.ticket, 1).begin() as lane:
            lane.layers([0, 1, 2]).end()
            assert "timed out" in r.failure(session)[1]
        r.serves_the_next()


def test_a_commit_waits_for_the_last_frames_of_the_other_connections() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            first.layers([0])
            second.layers([1, 2])
            first.commit(second)
            assert r.outcomes.empty()
            second.end()
            assert first.answer()[0] is FrameType.ACK
        r.arrived(session)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connections": [0]}, "timed out"),
        ({"connections": [0, 1, 2]}, "timed out"),
        ({"connections": [1]}, "commit.connections"),
        ({"connections": None}, "commit.connections"),
        ({"digest": "0" * 64}, "commit.digest"),
        ({"frames": 2}, "commit.frames"),
        ({"bytes": 1}, "commit.bytes"),
        ({"token_hash": "0" * 64}, "commit.token_hash"),
        ({"first_token": 64}, "commit.first_token"),
    ],
)
def test_a_commit_of_something_else_is_not_taken(change: dict[str, object], message: str) -> None:
    with rig(idle_s=0.5 if message == "timed out" else 5.0) as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            joined(session, 2)
            first.layers([0])
            second.layers([1, 2]).end()
            first.commit(second, **change)
            assert message in first.answer()[1]["message"]
        assert message in r.failure(session)[1]
        r.serves_the_next()


def test_missing_layers_and_a_missing_end_are_noticed() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as lane:
            lane.layers([0, 2]).commit()
            assert "never arrived" in lane.answer()[1]["message"]
        r.failure(session)
    with rig(idle_s=0.3) as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as first, Lane(session.ticket, 1).begin() as second:
            second.layers([0, 1, 2])
            first.commit(second)
            assert "timed out" in first.answer()[1]["message"]
        r.failure(session)
        r.serves_the_next()


def test_prefill_may_give_up() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket).begin() as lane:
            lane.link.send_json(FrameType.ERROR, {"code": "finished", "message": "enough", "retryable": False})
            assert "finished: enough" in r.failure(session)[1]
        r.serves_the_next()


def test_tickets_are_for_both_ends_and_for_one_use_of_each_connection() -> None:
    with rig() as r:
        session = r.announce(**MAC)
        with Lane(session.ticket, incarnation="other/e").begin() as lane:
            assert "another worker" in lane.refusal()
        with Lane(sign(b"k" * 32, dataclasses.replace(session.ticket, prefill_incarnation="other/e"))) as lane:
            assert "another worker" in lane.begin().refusal()
        with Lane(session.ticket, 1) as lane:
            assert "proof" in lane.begin(connection=0).refusal()
        with Lane(session.ticket, key=b"x" * 32) as lane:
            assert "proof" in lane.begin().refusal()
        with Peer(session.ticket) as peer:
            peer.send_begin()
            assert "frames of version 2" in peer.answer()[1]["message"]
        assert not r.listener.begun(session)
        with Lane(session.ticket).begin() as first:
            joined(session, 1)
            first.layers([0])
            with Lane(session.ticket) as again:
                assert "used" in again.begin().refusal()
            first.layers([1, 2]).commit()
            assert first.answer()[0] is FrameType.ACK
        r.arrived(session)
        with Lane(session.ticket, 1) as late:
            assert "used" in late.begin().refusal()
        r.serves_the_next()


def test_a_ticket_that_is_not_bound_is_not_for_frames_of_version_2() -> None:
    with rig() as r:
        session = r.announce()
        with Lane(session.ticket) as lane:
            assert "another worker" in lane.begin().refusal()
        r.listener.cancel(session)
        r.serves_the_next()


@pytest.mark.parametrize("connections", [1, 3])
def test_cancel_ends_every_connection_and_frees_once(connections: int) -> None:
    with rig() as r:
        session = r.announce(**MAC)
        lanes = [Lane(session.ticket, i).begin().layers([i]) for i in range(connections)]
        joined(session, connections)
        r.listener.cancel(session)
        r.listener.cancel(session)
        assert r.failure(session)[0] == "cancelled"
        with Lane(session.ticket, 3) as late:
            assert "cancelled" in late.begin().refusal()
        for lane in lanes:
            lane.sock.close()
        r.serves_the_next()


def test_an_engine_that_refuses_the_kv_fails_the_transfer() -> None:
    with rig() as r:
        session = r.announce(**MAC)

        def refuse(_: Received) -> None:
            raise ValueError("the worker is stopping")

        session.on_commit = refuse
        with Lane(session.ticket).begin() as lane:
            lane.layers([0, 1, 2]).commit()
            assert lane.answer()[1] == {"code": "not_accepted", "message": "the worker is stopping", "retryable": True}
        assert r.failure(session) == ("not_accepted", "the worker is stopping")
        r.serves_the_next()
