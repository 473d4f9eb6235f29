"""PURE: The result of a transfer, as decode sees it."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_worker.transfer.ucx_report import Moved


@dataclass(frozen=True, slots=True)
class Received:
    """A verified transfer."""

    first_token: int
    kv_bytes: int
    transfer_s: float
    """The time from the first frame to the commit."""
    moved: Moved | None = None
    """What has moved it, where that is not the TCP connection itself."""
