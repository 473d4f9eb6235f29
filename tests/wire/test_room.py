"""A room is read back as it was written, and nothing else is taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.room import NO_ROOM, Room, parse_room, total_room

COUNTS = st.integers(0, 1 << 40)
ROOMS = st.builds(Room, COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 86399))
GOOD = Room(100, 200, 3, 8, 0.02).to_json()


@given(ROOMS)
def test_what_a_worker_writes_is_read_back(room: Room) -> None:
    assert parse_room(json.loads(json.dumps(room.to_json()))) == room


def test_a_worker_that_says_nothing_has_no_known_room() -> None:
    assert parse_room(None) is None


@pytest.mark.parametrize(
    "raw",
    [
        [], "room", 5, {}, GOOD | {"free_tokens": -1}, GOOD | {"total_tokens": -1}, GOOD | {"free_seats": -1}, GOOD | {"total_seats": -1},
        GOOD | {"step_s": -0.1}, GOOD | {"step_s": 86400}, GOOD | {"step_s": float("nan")}, GOOD | {"free_tokens": "many"},
        GOOD | {"free_seats": None}, {k: v for k, v in GOOD.items() if k != "step_s"},
    ],
)  # fmt: skip
def test_what_is_no_room_is_refused(raw: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        parse_room(raw)


@given(st.lists(ROOMS, min_size=1, max_size=5))
def test_workers_together_have_the_sum_of_their_room_and_the_slowest_step(rooms: list[Room]) -> None:
    together = total_room(rooms)
    assert together is not None
    assert together.free_tokens == sum(r.free_tokens for r in rooms)
    assert together.total_tokens == sum(r.total_tokens for r in rooms)
    assert together.free_seats == sum(r.free_seats for r in rooms)
    assert together.total_seats == sum(r.total_seats for r in rooms)
    assert together.step_s == max(r.step_s for r in rooms)
    assert total_room([*rooms, NO_ROOM]) == together


def test_no_worker_has_no_known_room() -> None:
    assert total_room([]) is None
