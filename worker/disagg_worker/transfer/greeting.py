"""PURE: The BEGIN frame of each connection of a bound transfer, and the keys that follow from it.

The proof covers everything in BEGIN and the challenge of the connection, and the session keys
follow from the proof: each connection has its own, and a peer that lacks the cluster key can
neither derive nor reuse them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_protocol.ticket import Ticket, TicketError, verify
from disagg_worker.transfer.frames import FrameError

# The connections that a transfer may use.
MAX_CONNECTIONS = 4
KEY_BYTES = 16
_LABEL = b"disagg-kv-2 "
_FIELDS = {"ticket", "prefill_incarnation", "connection", "nonce", "proof"}


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """The keys of one connection, one for each direction, so that no frame can be sent back."""

    to_decode: bytes
    to_prefill: bytes
    blocks: bytes
    """For the tags of blocks that are written into decode's memory."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A verified BEGIN."""

    ticket: Ticket
    connection: int
    """The number of the connection in its transfer, from 0."""
    keys: SessionKeys


def begin_content(
    key: bytes, challenge: bytes, ticket: Ticket, incarnation: str, connection: int, nonce: str
) -> dict[str, Any]:
    """Return the content of BEGIN; `nonce` is random, so that no challenge gives the same keys
    twice.
    """
    content = {
        "ticket": ticket.to_json(),
        "prefill_incarnation": incarnation,
        "connection": connection,
        "nonce": nonce,
    }
    return content | {"proof": _proof(key, challenge, content)}


def _proof(key: bytes, challenge: bytes, content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, _LABEL + b"begin" + challenge + canonical, hashlib.sha256).hexdigest()


def session_keys(key: bytes, challenge: bytes, proof: str) -> SessionKeys:
    """Return the keys of the connection with this challenge and proof."""

    def derived(direction: bytes) -> bytes:
        return hmac.new(key, _LABEL + direction + challenge + proof.encode(), hashlib.sha256).digest()[:KEY_BYTES]

    return SessionKeys(*(derived(label) for label in (b"to decode", b"to prefill", b"blocks")))


def is_bound(content: Mapping[str, Any]) -> bool:
    """Return whether a BEGIN asks for frames of version 2."""
    return "connection" in content


def verify_begin(key: bytes, challenge: bytes, content: Mapping[str, Any]) -> Begin:
    """Check a BEGIN of version 2; nothing else is looked at before the proof is verified.

    Raises FrameError or TicketError.
    """
    proof = content.get("proof")
    given = proof.encode(errors="replace") if isinstance(proof, str) else b""
    unsigned = {name: value for name, value in content.items() if name != "proof"}
    expected = _proof(key, challenge, unsigned)
    if not hmac.compare_digest(given, expected.encode()):
        raise FrameError("proof: does not match")
    if set(content) != _FIELDS:
        raise FrameError(f"BEGIN: fields {sorted(set(content) ^ _FIELDS)} are missing or unknown")
    connection = content["connection"]
    if isinstance(connection, bool) or not isinstance(connection, int) or not 0 <= connection < MAX_CONNECTIONS:
        raise FrameError(f"BEGIN.connection: {connection!r} is none of {MAX_CONNECTIONS}")
    ticket = verify(key, content["ticket"])
    if not ticket.bound or content["prefill_incarnation"] != ticket.prefill_incarnation:
        raise TicketError("ticket.prefill_incarnation: is for another worker")
    return Begin(ticket, connection, session_keys(key, challenge, expected))
