"""The limits of the bodies that workers and adapters read, and the errors of passing them."""

from __future__ import annotations

from disagg_protocol.bodies import BadRequest
from disagg_protocol.errors import NoCapacity
from disagg_wire.request_bodies import BodyLimits, Refusal

LIMITS = BodyLimits(bytes_each=16 << 20, bytes_together=64 << 20, seconds_each=30.0)


def error_of(refusal: Refusal, limits: BodyLimits) -> BadRequest | NoCapacity:
    """Return the error of a body that is not read to its end."""
    match refusal:
        case Refusal.TOO_LARGE:
            return BadRequest(f"body: over {limits.bytes_each} bytes")
        case Refusal.CROWDED:
            return NoCapacity("too many bytes of other requests are on their way")
        case Refusal.LATE:
            return BadRequest(f"body: did not come within {limits.seconds_each:g} s")
