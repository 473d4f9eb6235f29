"""PURE: the single-use permission to push one request's KV into one decode worker.

The decode worker signs it with the cluster key, the router carries it, the prefill worker verifies
it before it connects: so a client, or a router that was talked into something, can't name a host to
connect to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any


class TicketError(ValueError):
    """The ticket is malformed or not signed with our key."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """See docs/protocol.md, "Ticket"."""

    transfer_id: str
    request_id: str
    epoch: int
    compat: str
    decode_incarnation: str
    host: str
    port: int
    tokens: int
    token_hash: str
    lifetime_s: float
    mac: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def token_hash(tokens: Sequence[int]) -> str:
    """Hex SHA-256 of the token ids as little-endian uint32."""
    return hashlib.sha256(struct.pack(f"<{len(tokens)}I", *tokens)).hexdigest()


def begin_proof(key: bytes, challenge: bytes, transfer_id: str) -> str:
    """Shows the listener that the connecting worker knows the cluster key, for this connection
    only.
    """
    return hmac.new(key, challenge + transfer_id.encode(errors="replace"), hashlib.sha256).hexdigest()


def _mac(key: bytes, ticket: Mapping[str, Any]) -> str:
    unsigned = {name: value for name, value in ticket.items() if name != "mac"}
    canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, canonical, hashlib.sha256).hexdigest()


def sign(key: bytes, ticket: Ticket) -> Ticket:
    """The same ticket with its mac."""
    values = asdict(ticket)
    values["mac"] = _mac(key, values)
    return Ticket(**values)


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
}


def verify(key: bytes, raw: object) -> Ticket:
    """Parse and check a ticket.

    Raises TicketError, which names the field but never shows the expected mac.
    """
    if not isinstance(raw, dict):
        raise TicketError("ticket: must be an object")
    known = {f.name: f for f in fields(Ticket)}
    if set(raw) != set(known):
        raise TicketError(f"ticket: fields {sorted(set(raw) ^ set(known))} are missing or unknown")
    for name, field in known.items():
        value = raw[name]
        if isinstance(value, bool) or not isinstance(value, _TYPES[str(field.type)]):
            raise TicketError(f"ticket.{name}: must be {field.type}")
    if not hmac.compare_digest(_mac(key, raw).encode(), raw["mac"].encode(errors="replace")):
        raise TicketError("ticket.mac: does not match")
    return Ticket(**raw)
