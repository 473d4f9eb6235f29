"""PURE: The manifest of a transfer: the record of the received parts, and the check that they are
exactly those that the ticket promised.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import Ticket
from disagg_worker.transfer.frames import FrameError, Header
from disagg_worker.values.layouts import KvLayout


class Digest:
    """The SHA-256 over the CRCs of the LAYER frames, in order.

    It is cheap, and any lost, doubled or reordered frame changes it.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.frames = 0
        self.payload_bytes = 0

    def add(self, crc32: int, payload_bytes: int) -> None:
        self.add_tag(struct.pack("<I", crc32), payload_bytes)

    def add_tag(self, tag: bytes, payload_bytes: int) -> None:
        """Add a frame of version 2, by its tag."""
        self._hash.update(tag)
        self.frames += 1
        self.payload_bytes += payload_bytes

    def hex(self) -> str:
        return self._hash.hexdigest()


def combined(digests: Mapping[int, Digest]) -> Digest:
    """Return the digest of a transfer over several connections: that of their digests, in order."""
    out = Digest()
    for connection in sorted(digests):
        digest = digests[connection]
        out.add_tag(bytes.fromhex(digest.hex()), digest.payload_bytes)
        out.frames += digest.frames - 1
    return out


@dataclass(slots=True)
class Coverage:
    """The (layer, block) parts that have arrived. Each must arrive exactly once, except those of
    the first `held_blocks`, which were there and must not arrive.
    """

    layout: KvLayout
    n_blocks: int
    held_blocks: int = 0
    digest: Digest = field(default_factory=Digest)
    _seen: bytearray = field(init=False)
    _missing: int = field(init=False)

    def __post_init__(self) -> None:
        self._missing = self.layout.layers * (self.n_blocks - self.held_blocks)
        self._seen = bytearray(self.layout.layers * self.n_blocks)

    def check(self, header: Header) -> None:
        """Raise FrameError unless this LAYER frame is inside the reservation, has the right size
        and is the next one.
        """
        if header.seq != self.digest.frames:
            raise FrameError(f"frame {header.seq} came where {self.digest.frames} was due")
        self._check_place(header)

    def _check_place(self, header: Header) -> None:
        if header.layer >= self.layout.layers:
            raise FrameError(f"layer {header.layer} of {self.layout.layers}")
        if not 0 < header.n_blocks <= self.n_blocks - min(header.first_block, self.n_blocks):
            raise FrameError(f"blocks {header.first_block}+{header.n_blocks} of {self.n_blocks}")
        if header.first_block < self.held_blocks:
            raise FrameError(f"blocks {header.first_block}+{header.n_blocks}: {self.held_blocks} are there already")
        if header.length_bytes != header.n_blocks * self.layout.layer_block_bytes:
            raise FrameError(f"{header.length_bytes} bytes for {header.n_blocks} blocks")
        start = header.layer * self.n_blocks + header.first_block
        if any(self._seen[start : start + header.n_blocks]):
            raise FrameError(f"layer {header.layer} blocks {header.first_block}+{header.n_blocks} came twice")

    def take(self, header: Header) -> None:
        """Record a checked frame whose payload has been read and verified."""
        self._mark(header)
        self.arrived(header)
        self.digest.add(header.crc32, header.length_bytes)

    def _mark(self, header: Header) -> None:
        start = header.layer * self.n_blocks + header.first_block
        self._seen[start : start + header.n_blocks] = b"\x01" * header.n_blocks

    def claim(self, header: Header) -> None:
        """Give the place of a LAYER frame of version 2 to it, before its payload is read: no other
        connection may write there.

        Raises FrameError like `check`.
        """
        self._check_place(header)
        self._mark(header)

    def arrived(self, header: Header) -> None:
        """Count a frame whose payload has been read and verified."""
        self._missing -= header.n_blocks

    @property
    def complete(self) -> bool:
        return self._missing == 0


def commit_payload(digest: Digest, tokens: int, token_hash: str, first_token: TokenEvent) -> dict[str, Any]:
    """Return the content of the COMMIT frame.

    Count and hash are those of the tokens that were computed, and not copied from the ticket.
    """
    return {
        "frames": digest.frames,
        "bytes": digest.payload_bytes,
        "digest": digest.hex(),
        "token_hash": token_hash,
        "tokens": tokens,
        "first_token": first_token.token,
        "logprob": first_token.logprob,
        "top_logprobs": [list(pair) for pair in first_token.top_logprobs],
    }


def verify_commit(
    payload: object, coverage: Coverage, ticket: Ticket, vocab_size: int, digest: Digest | None = None
) -> int:
    """Return the first token if everything that the ticket promised has arrived.

    `digest` is that of all connections, of a transfer over several.

    Raises FrameError, which names the field that does not match.
    """
    if not isinstance(payload, dict):
        raise FrameError("commit: must be an object")
    digest = digest or coverage.digest
    expected = {
        "frames": digest.frames,
        "bytes": digest.payload_bytes,
        "digest": digest.hex(),
        "token_hash": ticket.token_hash,
        "tokens": ticket.tokens,
    }
    for name, value in expected.items():
        if payload.get(name) != value:
            raise FrameError(f"commit.{name}: {payload.get(name)!r} does not match what was received")
    if not coverage.complete:
        raise FrameError("commit: some layers or blocks never arrived")
    token = payload.get("first_token")
    if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
        raise FrameError(f"commit.first_token: {token!r} is not a token of this model")
    return token
