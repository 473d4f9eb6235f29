"""PURE: The result of a transfer, as decode sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Received:
    """A verified transfer."""

    first_token: int
    kv_bytes: int
    transfer_s: float
    """The time from the first frame to the commit."""
