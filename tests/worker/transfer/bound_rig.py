"""A peer that speaks frames of version 2, and can misbehave in every way."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from tests.worker.transfer.rig import BLOCKS, FIRST, KEY, LAYOUT, TOKENS, layer_payload, reset

from disagg_protocol.ticket import Ticket, token_hash
from disagg_worker.transfer import frames
from disagg_worker.transfer.frame_socket import FrameSocket, parse_json
from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.greeting import begin_content, session_keys
from disagg_worker.transfer.manifest import Digest, combined, commit_payload
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer

PREFILL = "p/e"
MAC: dict[str, Any] = {"prefill_incarnation": PREFILL, "integrity": "mac"}
CRC: dict[str, Any] = {"prefill_incarnation": PREFILL, "integrity": "crc32c"}


class Lane:
    """One connection of a prefill worker."""

    def __init__(self, ticket: Ticket, connection: int = 0, incarnation: str = PREFILL, key: bytes = KEY) -> None:
        self.connection = connection
        self.sock = socket.create_connection((ticket.host, ticket.port), timeout=10)
        plain = FrameSocket(self.sock, 10)
        raw, header = plain.header()
        challenge = plain.control(raw, header)
        self.challenge = challenge
        self.content = begin_content(key, challenge, ticket, incarnation, connection, "ab" * 16)
        keys = session_keys(key, challenge, self.content["proof"])
        self.plain = plain
        self.out = Sealer(keys.to_decode, ticket.integrity)
        self.link = SealedSocket(self.sock, 10, self.out, Sealer(keys.to_prefill, ticket.integrity))
        self.digest = Digest()

    def __enter__(self) -> Lane:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def begin(self, **change: Any) -> Lane:
        self.sock.settimeout(10)
        self.plain.send_json(FrameType.BEGIN, self.content | change)
        self.sock.settimeout(None)
        return self

    def sealed(self, header: Header, payload: bytes = b"", kind: FrameType | None = None) -> bytes:
        """Return the next frame as bytes; its tag is that of another type, if `kind` is given."""
        raw = frames.encode_header_2(header, len(payload))
        seal = self.out.next(header.type if kind is None else kind)
        seal.update(raw)
        seal.update(payload)
        return raw + payload + seal.tag()

    def layer_bytes(self, layer: int, seq: int) -> bytes:
        return self.sealed(Header(FrameType.LAYER, layer, seq, 0, BLOCKS), b"".join(layer_payload(layer)))

    def layers(self, numbers: Sequence[int]) -> Lane:
        for layer in numbers:
            header = Header(FrameType.LAYER, layer, 0, 0, BLOCKS)
            self.digest.add_tag(self.link.send(header, layer_payload(layer)), BLOCKS * LAYOUT.layer_block_bytes)
        return self

    def end(self) -> None:
        self.link.send(Header(FrameType.END))

    def commit(self, *others: Lane, **change: Any) -> None:
        digests = {lane.connection: lane.digest for lane in (self, *others)}
        content = commit_payload(combined(digests), len(TOKENS), token_hash(TOKENS), FIRST)
        self.link.send_json(FrameType.COMMIT, content | {"connections": sorted(digests)} | change)

    def answer(self) -> tuple[FrameType, dict[str, Any]]:
        header = self.link.header()
        return header.type, parse_json(self.link.control(header))

    def refusal(self) -> str:
        """Return the message with which BEGIN was refused, in a frame of version 1."""
        self.sock.settimeout(10)
        raw, header = self.plain.header()
        content = parse_json(self.plain.control(raw, header))
        assert (header.type, content["code"]) == (FrameType.ERROR, "ticket_refused")
        return str(content["message"])

    def reset(self) -> None:
        reset(self.sock)
