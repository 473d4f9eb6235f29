"""PURE: A verdict on the other end of a connection by what its kernel does: it is silent if nothing
acknowledges what was sent to it.

A process that is slow, stopped, or held up by its interpreter does not make it silent, since its
kernel answers for it. A network that is cut does, and a machine that is gone.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

# The start of Linux's struct tcp_info: tcpi_unacked is the first of these, and the second is
# tcpi_last_ack_recv, in milliseconds.
_UNACKED = struct.Struct("=24xI")
_LAST_ACK = struct.Struct("=56xI")
INFO_BYTES = _LAST_ACK.size


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the kernel knows of the other end's."""

    waits: bool
    """Whether something that was sent is not acknowledged."""
    last_s: float
    """The seconds since the last acknowledgement of anything."""


def parse(info: bytes) -> Acknowledged | None:
    """Return what a tcp_info says; None for one that is too short."""
    if len(info) < INFO_BYTES:
        return None
    return Acknowledged(_UNACKED.unpack_from(info)[0] > 0, _LAST_ACK.unpack_from(info)[0] / 1000)


class LinkSilence:
    """Measures for how long the other end acknowledges nothing, although something waits for it.

    It counts from the first look at which that was so: what came before says nothing of a
    connection that was idle.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s: float | None = None

    def look(self, found: Acknowledged, now_s: float) -> bool:
        """Return whether it is silent."""
        if not found.waits:
            self._since_s = None
        elif self._since_s is None or now_s - found.last_s > self._since_s:
            self._since_s = now_s
        return self._since_s is not None and now_s - self._since_s > self._limit_s
