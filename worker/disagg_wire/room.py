"""PURE: The room for sequences that decode workers report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Room:
    """The free and the total capacity of decode workers (`room` in docs/protocol.md)."""

    free_tokens: int
    """The number of tokens of KV cache that are free."""
    total_tokens: int
    """The number of tokens that the KV cache holds."""
    free_seats: int
    """The number of sequences that can still be added."""
    total_seats: int
    """The number of sequences that can run at once."""
    step_s: float
    """The recent duration of a decode step in seconds; 0 if there was none."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


NO_ROOM = Room(0, 0, 0, 0, 0.0)


def parse_room(raw: Any) -> Room | None:
    """Return the room that a worker reports, or None if it reports none.

    Raises ValueError, TypeError, KeyError or OverflowError.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError("room is no object")
    room = Room(
        free_tokens=int(raw["free_tokens"]),
        total_tokens=int(raw["total_tokens"]),
        free_seats=int(raw["free_seats"]),
        total_seats=int(raw["total_seats"]),
        step_s=float(raw["step_s"]),
    )
    if min(room.free_tokens, room.total_tokens, room.free_seats, room.total_seats) < 0 or not 0 <= room.step_s < 86400:
        raise ValueError("room is out of bounds")
    return room


def total_room(rooms: Iterable[Room]) -> Room | None:
    """Return the room of several workers together, or None for no workers.

    The slowest step counts.
    """
    listed = list(rooms)
    if not listed:
        return None
    return Room(
        sum(r.free_tokens for r in listed),
        sum(r.total_tokens for r in listed),
        sum(r.free_seats for r in listed),
        sum(r.total_seats for r in listed),
        max(r.step_s for r in listed),
    )
