"""The limits of the bodies that clients send, and the errors of passing them."""

from __future__ import annotations

from disagg_router.errors import ApiError
from disagg_router.settings import Settings
from disagg_wire.request_bodies import BodyLimits, Refusal

_TIMEOUT_S = 60.0


def limits_of(settings: Settings) -> BodyLimits:
    """Return the limits that the settings of the router give."""
    return BodyLimits(settings.max_body_bytes, settings.max_bodies_bytes, _TIMEOUT_S)


def error_of(refusal: Refusal, limits: BodyLimits) -> ApiError:
    """Return the answer to a body that is not read to its end."""
    match refusal:
        case Refusal.TOO_LARGE:
            return ApiError(413, f"the body is over {limits.bytes_each} bytes", code="body_too_large")
        case Refusal.CROWDED:
            message = "too many bytes of other requests are on their way; try again"
            return ApiError(503, message, code="overloaded", retry_after_s=1)
        case Refusal.LATE:
            return ApiError(408, f"the body did not come within {limits.seconds_each:g} s", code="body_timeout")
