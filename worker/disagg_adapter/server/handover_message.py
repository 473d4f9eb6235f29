"""PURE: The message by which prefill's adapter hands KV over to decode's (docs/protocol.md).

It is signed with the cluster key as a whole. No client can write one, so nothing that a client
sends reaches the fields with which engines move KV.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from disagg_protocol.ticket import Ticket, TicketError, verify

_PURPOSE = b"disagg-handover-v1"


class NotSigned(TicketError):
    """Raised when a message is not signed with the cluster key."""


@dataclass(frozen=True, slots=True)
class HandOverMessage:
    """A hand-over on its way between two adapters."""

    ticket: Ticket
    prefill_incarnation: str
    engine: str
    """The name of prefill's engine."""
    parameters: Mapping[str, Any]
    """The engine's own object."""
    first_token: int | None
    """The first token as prefill sampled it, if it is known."""
    cached_tokens: int | None
    """The number of prompt tokens that prefill found in its prefix cache, if it is known."""
    age_s: float
    """The seconds since prefill's engine gave it."""


def _mac(key: bytes, body: Mapping[str, Any]) -> str:
    unsigned = {name: value for name, value in body.items() if name != "mac"}
    canonical = json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, _PURPOSE + canonical, hashlib.sha256).hexdigest()


def sign_message(key: bytes, message: HandOverMessage) -> dict[str, Any]:
    """Return the body to send."""
    body = asdict(message) | {"ticket": message.ticket.to_json(), "parameters": dict(message.parameters)}
    return body | {"mac": _mac(key, body)}


def read_message(key: bytes, raw: object) -> HandOverMessage:
    """Parse and check a body. Raises TicketError, which names the field."""
    if not isinstance(raw, dict):
        raise TicketError("body: must be an object")
    names = {"ticket", "prefill_incarnation", "engine", "parameters", "first_token", "cached_tokens", "age_s", "mac"}
    if set(raw) != names:
        raise TicketError(f"body: fields {sorted(set(raw) ^ names)} are missing or unknown")
    if not isinstance(raw["mac"], str) or not hmac.compare_digest(
        _mac(key, raw).encode(), raw["mac"].encode(errors="replace")
    ):
        raise NotSigned("mac: does not match")
    ticket = verify(key, raw["ticket"])
    first, cached, age_s = raw["first_token"], raw["cached_tokens"], raw["age_s"]
    if not isinstance(raw["parameters"], dict):
        raise TicketError("parameters: must be an object")
    if not all(isinstance(raw[name], str) for name in ("prefill_incarnation", "engine")):
        raise TicketError("prefill_incarnation, engine: must be text")
    if not all(n is None or (isinstance(n, int) and not isinstance(n, bool) and n >= 0) for n in (first, cached)):
        raise TicketError("first_token, cached_tokens: must be numbers or null")
    if isinstance(age_s, bool) or not isinstance(age_s, int | float) or not 0 <= age_s < 86400:
        raise TicketError("age_s: must be seconds")
    return HandOverMessage(
        ticket=ticket,
        prefill_incarnation=raw["prefill_incarnation"],
        engine=raw["engine"],
        parameters=raw["parameters"],
        first_token=first,
        cached_tokens=cached,
        age_s=float(age_s),
    )
