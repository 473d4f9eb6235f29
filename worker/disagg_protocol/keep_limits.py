"""PURE: What streams that clients may resume may cost a worker."""

from __future__ import annotations

from dataclasses import dataclass


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
