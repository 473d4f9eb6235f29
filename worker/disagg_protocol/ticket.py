"""PURE: The ticket, a single-use permission to send the KV of one request to one decode worker.

The decode worker signs it with the cluster key, the router passes it on, and the prefill worker
verifies it before it connects. A client, or a router that was deceived, therefore cannot name a
host to connect to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from disagg_wire.integrity import INTEGRITIES


class TicketError(ValueError):
    """Raised when a ticket is malformed or not signed with the cluster key."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket (docs/protocol.md, "Ticket")."""

    transfer_id: str
    """A random ID, 32 hexadecimal digits."""
    request_id: str
    epoch: int
    """The number of the router's attempt."""
    compat: str
    """The compatibility hash of the decode worker (compatibility.py)."""
    decode_incarnation: str
    """The incarnation of the decode worker."""
    host: str
    """The address on which the decode worker listens for KV."""
    port: int
    tokens: int
    """The number of tokens whose KV is to be sent."""
    token_hash: str
    """The `token_hash` of these tokens."""
    lifetime_s: float
    """The seconds after which the unused ticket expires."""
    mac: str = ""
    """The signature: hex HMAC-SHA256 over the other fields."""
    prefill_incarnation: str = ""
    """The incarnation of the prefill worker that alone may use the ticket; empty if any may.

    KV for such a ticket is sent in frames of version 2.
    """
    integrity: str = ""
    """The check of these frames, one of disagg_wire.integrity.INTEGRITIES."""
    held_blocks: int = 0
    """The leading KV blocks of the tokens that decode holds already, and that are not sent."""
    held_hash: str = ""
    """The `prefix_hash` of these blocks; empty if there are none."""
    offer: str = ""
    """What a prefill worker needs that writes into the memory of decode by itself, as JSON; empty
    if none can.
    """

    @property
    def bound(self) -> bool:
        """Whether the ticket names the prefill worker, and frames of version 2 are sent."""
        return self.prefill_incarnation != ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields; those of bound tickets are left out of others, as 0.1.0 wants it, and
        an offer of those without one.
        """
        left_out = _left_out(self.bound, offered=self.offer != "")
        return {name: value for name, value in asdict(self).items() if name not in left_out}


_OFFER = "offer"
_OF_BOUND = ("prefill_incarnation", "integrity", "held_blocks", "held_hash", _OFFER)


def _left_out(bound: bool, *, offered: bool) -> tuple[str, ...]:
    if not bound:
        return _OF_BOUND
    return () if offered else (_OFFER,)


def token_hash(tokens: Sequence[int]) -> str:
    """Return the hex SHA-256 of the token IDs as little-endian uint32."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()


def prefix_hash(compat: str, adapter: str, tokens: Sequence[int], block_size_tokens: int, blocks: int) -> str:
    """Return the end of the hash chain over the first `blocks` full blocks of the tokens, or "" for
    no blocks.

    The chain begins with what the KV depends on besides the tokens: `compat`, which stands for
    weights and layout, and the LoRA adapter.
    """
    if not blocks:
        return ""
    link = hashlib.sha256(json.dumps([compat, adapter]).encode()).digest()
    for start in range(0, blocks * block_size_tokens, block_size_tokens):
        block = tokens[start : start + block_size_tokens]
        link = hashlib.sha256(link + struct.pack(f"<{len(block)}I", *block)).digest()
    return link.hex()


def check_held(ticket: Ticket, compat: str, adapter: str, tokens: Sequence[int], block_size_tokens: int) -> None:
    """Check that the blocks which decode holds are the first ones of these tokens, for the same
    weights, and that at least the last block is left to be sent.

    Raises TicketError.
    """
    if ticket.held_blocks * block_size_tokens >= len(tokens):
        raise TicketError(f"ticket.held_blocks: {ticket.held_blocks} blocks of {len(tokens)} tokens leave none to send")
    found = prefix_hash(compat, adapter, tokens, block_size_tokens, ticket.held_blocks)
    if ticket.held_hash != found:
        raise TicketError("ticket.held_hash: the blocks that decode holds are of other tokens or weights")


def begin_proof(key: bytes, challenge: bytes, transfer_id: str) -> str:
    """Return the proof, for one connection, that the connecting worker knows the cluster key."""
    return hmac.new(key, challenge + transfer_id.encode(errors="replace"), hashlib.sha256).hexdigest()


def _mac(key: bytes, ticket: Mapping[str, Any]) -> str:
    unsigned = {name: value for name, value in ticket.items() if name != "mac"}
    canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, canonical, hashlib.sha256).hexdigest()


def sign(key: bytes, ticket: Ticket) -> Ticket:
    """Return the same ticket with its signature."""
    values = ticket.to_json()
    values["mac"] = _mac(key, values)
    return Ticket(**values)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
}


def verify(key: bytes, raw: object) -> Ticket:
    """Parse and check a ticket.

    Raises TicketError, which names the field but never shows the expected signature.
    """
    if not isinstance(raw, dict):
        raise TicketError("ticket: must be an object")
    bound = any(name in raw for name in _OF_BOUND)
    left_out = _left_out(bound, offered=_OFFER in raw)
    known = {f.name: f for f in fields(Ticket) if f.name not in left_out}
    if set(raw) != set(known):
        raise TicketError(f"ticket: fields {sorted(set(raw) ^ set(known))} are missing or unknown")
    for name, field in known.items():
        value = raw[name]
        if isinstance(value, bool) or not isinstance(value, _TYPES[str(field.type)]):
            raise TicketError(f"ticket.{name}: must be {field.type}")
    if not hmac.compare_digest(_mac(key, raw).encode(), raw["mac"].encode(errors="replace")):
        raise TicketError("ticket.mac: does not match")
    ticket = Ticket(**raw)
    if ticket.to_json().keys() != raw.keys():
        raise TicketError("ticket.prefill_incarnation: must not be empty")
    if ticket.bound and ticket.integrity not in INTEGRITIES:
        raise TicketError(f"ticket.integrity: must be one of {', '.join(INTEGRITIES)}")
    if ticket.held_blocks < 0 or bool(ticket.held_blocks) != bool(ticket.held_hash):
        raise TicketError("ticket.held_blocks: must not be negative, and have a hash unless it is 0")
    return ticket
