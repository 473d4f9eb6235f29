"""PURE: The room that decode workers say they have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Room:
    """docs/protocol.md, `room`. `step_s`: how long a decode step took lately, 0: none was."""

    free_tokens: int
    total_tokens: int
    free_seats: int
    total_seats: int
    step_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


NO_ROOM = Room(0, 0, 0, 0, 0.0)


def parse_room(raw: Any) -> Room | None:
    """None where a worker says nothing of it. Raises ValueError, TypeError or KeyError."""
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
    """What several workers have together; the slowest step counts. None for none."""
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
