"""PURE: What streams that clients may resume may cost a worker."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field


@dataclass(frozen=True, slots=True)
class KeepLimits:
    """The limits; each is a setting of that name of the worker and of the adapter."""

    keep_s: float = 60.0
    """How long a stream is kept once it has ended or lost its reader; 0 keeps none."""
    most_bytes: int = 16 << 20
    """How many bytes are kept in all."""
    unread_s: float = 5.0
    """How long a stream is made further that nobody reads."""
    unread_streams: int = 4
    """How many of these there are at a time."""


_DEFAULTS = KeepLimits()
# The settings that both have.
KEEP_S = Field(
    _DEFAULTS.keep_s,
    ge=0,
    le=3600,
    description="The time in seconds for which a stream that its client may resume is kept once it has ended or "
    "lost its reader. 0: no stream can be resumed.",
)
KEEP_BYTES = Field(
    _DEFAULTS.most_bytes,
    ge=0,
    le=1 << 34,
    description="The most bytes that are kept of such streams. The oldest ones go first.",
)
UNREAD_S = Field(
    _DEFAULTS.unread_s,
    ge=0,
    le=3600,
    description="The time in seconds for which such a stream is made further when nobody reads it any more. After "
    "that it is continued only if somebody asks for it.",
)
UNREAD_STREAMS = Field(
    _DEFAULTS.unread_streams,
    ge=0,
    le=4096,
    description="The most streams that are made further without a reader. The oldest one ends for a new one.",
)
