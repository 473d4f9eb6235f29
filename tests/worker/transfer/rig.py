"""A listener with real memory, and a peer that can misbehave on the wire in every way."""

from __future__ import annotations

import dataclasses
import json
import queue
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.fakes.kv_memory import KvMemory

from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import Ticket, begin_proof, sign, token_hash
from disagg_worker.transfer.frame_socket import FrameSocket, parse_json
from disagg_worker.transfer.frames import FrameType, Header, encode_header
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.manifest import Digest, commit_payload
from disagg_worker.transfer.received import Received
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout

KEY = b"k" * 32
LAYOUT = KvLayout(layers=3, kv_heads=2, head_dim=4, block_size_tokens=4, dtype="float32", itemsize_bytes=4)
TOKENS = list(range(10, 20))
BLOCKS = 3
VOCAB = 64
FIRST = TokenEvent(0, 7)


def until(what: Callable[[], bool]) -> None:
    """Wait until something holds, for 20 s at most."""
    deadline_s = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


class Memory(KvMemory):
    """Implements contract.Reservation: the blocks of one sequence, as an engine would hold them."""

    held_blocks = 0

    def __init__(self, n_blocks: int = BLOCKS, fill: bytes = b"\0") -> None:
        super().__init__(LAYOUT, n_blocks, fill)
        self.released: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def written_in_region(self) -> None:
        raise AssertionError("only NIXL writes in the region")

    def release(self) -> None:
        self.released.put(True)


SOURCE = Memory(fill=bytes(range(251)))


def ticket_of(listener: KvListener, tokens: list[int], **bound: Any) -> Ticket:
    return Ticket(
        transfer_id=secrets.token_hex(16),
        request_id="r",
        epoch=0,
        compat="c",
        decode_incarnation="d/e",
        host=listener.host,
        port=listener.port,
        tokens=len(tokens),
        token_hash=token_hash(tokens),
        lifetime_s=30.0,
        **bound,
    )


class Rig:
    """A listener with one announced transfer at a time; its outcome is in `outcomes`."""

    def __init__(self, idle_s: float) -> None:
        self.listener = KvListener("127.0.0.1", 0, KEY, LAYOUT, VOCAB, idle_s=idle_s, max_connections=12)
        self.outcomes: queue.SimpleQueue[Received | tuple[str, str]] = queue.SimpleQueue()

    def announce(self, **bound: Any) -> Session:
        ticket = ticket_of(self.listener, TOKENS, **bound)
        session = Session(
            sign(KEY, ticket), Memory(), self.outcomes.put, lambda code, message: self.outcomes.put((code, message))
        )
        self.listener.expect(session)
        return session

    def outcome(self) -> Received | tuple[str, str]:
        return self.outcomes.get(timeout=10)

    def failure(self, session: Session) -> tuple[str, str]:
        """Check that the transfer failed and its blocks are free, and return code and message."""
        outcome = self.outcome()
        assert isinstance(outcome, tuple)
        assert self.outcomes.empty()
        assert isinstance(session.reservation, Memory)
        assert session.reservation.released.get_nowait()
        assert session.reservation.released.empty()
        return outcome

    def arrived(self, session: Session) -> None:
        """Check that the KV lies in the blocks, which nobody has given up."""
        got = self.outcome()
        assert isinstance(got, Received)
        assert (got.first_token, got.kv_bytes) == (7, len(SOURCE.bytes))
        assert isinstance(session.reservation, Memory)
        assert session.reservation.bytes == SOURCE.bytes
        assert session.reservation.released.empty()

    def serves_the_next(self) -> None:
        """Check the invariant after every fault: the listener accepts the next transfer.

        That one may take its time, however short a silence the fault needed.
        """
        self.listener._idle_s = 5.0
        session = self.announce()
        with Peer(session.ticket) as peer:
            peer.send_all()
            assert peer.answer() == (FrameType.ACK, {"kv_bytes": len(SOURCE.bytes)})
        self.arrived(session)
        assert self.listener._waiting == {}
        assert self.listener._receiving == {}


@contextmanager
def rig(idle_s: float = 5.0) -> Iterator[Rig]:
    r = Rig(idle_s)
    try:
        yield r
    finally:
        r.listener.close()


def reset(sock: socket.socket) -> None:
    """Close the connection with RST, as the death of a process does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Peer:
    """A prefill worker whose frames the test sends."""

    def __init__(self, ticket: Ticket, key: bytes = KEY) -> None:
        self.ticket = ticket
        self.key = key
        self.sock = socket.create_connection((ticket.host, ticket.port), timeout=10)
        self.link = FrameSocket(self.sock, 10)
        raw, header = self.link.header()
        assert header.type is FrameType.CHALLENGE
        self.challenge = self.link.control(raw, header)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def reset(self) -> None:
        reset(self.sock)

    def begin(self) -> dict[str, Any]:
        proof = begin_proof(self.key, self.challenge, self.ticket.transfer_id)
        return {"ticket": self.ticket.to_json(), "prefill_incarnation": "p/e", "proof": proof}

    def send_begin(self, **change: Any) -> None:
        self.link.send_json(FrameType.BEGIN, self.begin() | change)

    def send_all(self, tokens: list[int] = TOKENS, *, begun: bool = False) -> None:
        if not begun:
            self.send_begin()
        digest = Digest()
        for layer in range(LAYOUT.layers):
            digest.add(
                self.link.send(layer_header(layer, digest.frames), layer_payload(layer)),
                BLOCKS * LAYOUT.layer_block_bytes,
            )
        self.link.send_json(FrameType.COMMIT, commit_payload(digest, len(tokens), token_hash(tokens), FIRST))

    def answer(self) -> tuple[FrameType, dict[str, Any]]:
        raw, header = self.link.header()
        return header.type, parse_json(self.link.control(raw, header))


def layer_header(layer: int, seq: int, **change: Any) -> Header:
    return dataclasses.replace(Header(FrameType.LAYER, layer, seq, 0, BLOCKS), **change)


def layer_blocks() -> KvBlocks:
    return SOURCE.blocks(0, BLOCKS)


def big_block(size_bytes: int) -> KvBlocks:
    """Return a block of which one layer has so many bytes, all of them 0."""
    layout = dataclasses.replace(LAYOUT, head_dim=size_bytes // LAYOUT.layer_block_bytes * LAYOUT.head_dim)
    return KvMemory(layout, 1).blocks(0, 1)


def layer_payload(layer: int) -> list[memoryview]:
    return [SOURCE.view(layer, b) for b in range(BLOCKS)]


def whole_stream(peer: Peer) -> bytes:
    """Return all bytes that a correct peer sends after the challenge."""
    out = io_bytes(Header(FrameType.BEGIN), _json(peer.begin()))
    digest = Digest()
    for layer in range(LAYOUT.layers):
        header, payload = layer_header(layer, layer), b"".join(layer_payload(layer))
        raw, crc = encode_header(header, [payload])
        out += raw + payload
        digest.add(crc, len(payload))
    return out + io_bytes(
        Header(FrameType.COMMIT), _json(commit_payload(digest, len(TOKENS), token_hash(TOKENS), FIRST))
    )


def io_bytes(header: Header, payload: bytes) -> bytes:
    return encode_header(header, [payload])[0] + payload


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
