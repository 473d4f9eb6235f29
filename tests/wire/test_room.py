"""Tests of the room that workers report: it is read as it was sent, or refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.room import NO_ROOM, Room, parse_room, total_room

COUNTS = st.integers(0, 1 << 40)
ROOMS = st.builds(Room, COUNTS, COUNTS, COUNTS, COUNTS, st.floats(0, 86_400, exclude_max=True))
GOOD = NO_ROOM.to_json()
BAD_VALUES: list[Any] = [-1, "many", None, [], math.inf, math.nan]


@given(ROOMS)
def test_a_room_is_read_as_it_was_sent(room: Room) -> None:
    assert parse_room(json.loads(json.dumps(room.to_json()))) == room


def test_a_worker_that_reports_no_room_has_none() -> None:
    assert parse_room(None) is None


@pytest.mark.parametrize(
    "garbled",
    [
        [], "room", 5, {}, {"free_tokens": 1},
        *({**GOOD, name: value} for name in GOOD for value in BAD_VALUES),
        {**GOOD, "step_s": 86_400},
    ],
)  # fmt: skip
def test_a_garbled_room_is_refused_with_an_error_that_callers_expect(garbled: Any) -> None:
    with pytest.raises((ValueError, TypeError, KeyError, OverflowError)):
        parse_room(garbled)


@given(st.lists(ROOMS, max_size=6), st.integers(0, 6))
def test_rooms_add_up_in_any_grouping_and_the_slowest_step_counts(rooms: list[Room], at: int) -> None:
    total = total_room(rooms)
    groups = [group for group in (total_room(rooms[:at]), total_room(rooms[at:])) if group is not None]
    assert total_room(groups) == total
    assert (total is None) == (not rooms)
    if total is not None:
        assert total.free_tokens == sum(r.free_tokens for r in rooms)
        assert total.free_seats == sum(r.free_seats for r in rooms)
        assert total.step_s == max(r.step_s for r in rooms)
