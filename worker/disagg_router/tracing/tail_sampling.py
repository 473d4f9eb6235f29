"""PURE: Which traces are kept, decided when their requests are over."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Of the trace's ID, the part that is random in every trace, as in OpenTelemetry's own samplers: all
# that sample with the same share keep the same traces.
_RANDOM_BYTES = 7


class Kept(StrEnum):
    """The reasons for which a trace is kept; the first that applies counts."""

    PARENT = "parent"
    ERROR = "error"
    SLOW = "slow"
    RETRIED = "retried"
    SHARE = "share"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a request ended, as far as that decides whether its trace is kept."""

    trace_id: bytes
    parent_sampled: bool | None = None
    """Whether the span that it continues is recorded; None if it continues none."""
    failed: bool = False
    """Whether the service has failed it, or refused it for lack of room."""
    slow: bool = False
    """Whether it has missed an objective."""
    attempts: int = 0
    """The most attempts that a choice of its answer took."""


def why_kept(ending: Ending, ratio: float) -> Kept | None:
    """Return why a trace is kept, or None if it is not.

    What it continues has decided for the whole trace. Of the others, those that tell something are
    kept, and the share `ratio` of the rest.
    """
    if ending.parent_sampled is not None:
        return Kept.PARENT if ending.parent_sampled else None
    if ending.failed:
        return Kept.ERROR
    if ending.slow:
        return Kept.SLOW
    if ending.attempts > 1:
        return Kept.RETRIED
    return Kept.SHARE if _is_drawn(ending.trace_id, ratio) else None


def _is_drawn(trace_id: bytes, ratio: float) -> bool:
    limit = 1 << 8 * _RANDOM_BYTES
    return int.from_bytes(trace_id[-_RANDOM_BYTES:]) >= round((1.0 - ratio) * limit)
