"""PURE: The bounds of a sender's waits, and what it raises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SenderTimeouts:
    """The bounds of a sender's waits."""

    connect_s: float = 1.5
    """Seconds to connect: a second attempt is made after one."""
    silence_s: float = 1.0
    """Seconds in which the peer's kernel acknowledges nothing of what was sent, after which the
    network is taken to be cut.
    """
    progress_s: float = 0.5
    """Seconds without a layer after which a PROGRESS frame is sent."""
    peer_s: float = 5.0
    """Seconds for the peer to read or to answer."""


class TransferFailed(Exception):
    """Raised when the peer refuses a transfer or breaks it off."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """The peer's code, if it has given one."""


class NixlFailed(TransferFailed):
    """Raised when NIXL fails, or does not do in time what was asked of it."""
