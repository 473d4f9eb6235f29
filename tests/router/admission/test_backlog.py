"""Tests of the bound on what waits: who is let in when it is full, and whose place is given up."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.admission.asker import Asker
from disagg_router.admission.backlog import Backlog, Place

# (places in the order in which they came, as "asker priority size firm", the newcomer, and which is
# pushed out, or None if the newcomer is not let in), with room for 4 requests and 100 bytes
TABLE: list[tuple[str, list[tuple[str, int, int, bool]], tuple[str, int, int], list[int] | None]] = [
    ("there is room", [("a", 0, 1, False)] * 3, ("b", 0, 1), []),
    ("one key alone pushes nobody out", [("a", 0, 1, False)] * 4, ("a", 0, 1), None),
    ("the last of the key that has most", [("b", 0, 1, False)] + [("a", 0, 1, False)] * 3, ("b", 0, 1), [3]),
    ("not by one that has as many then", [("a", 0, 1, False)] * 2 + [("b", 0, 1, False)] * 2, ("b", 0, 1), None),
    ("by a third", [("a", 0, 1, False)] * 2 + [("b", 0, 1, False)] * 2, ("c", 0, 1), [1]),
    ("not who has waited before", [("a", 0, 1, False)] * 2 + [("a", 0, 1, True)] * 2, ("b", 0, 1), [1]),
    ("nobody if all have", [("a", 0, 1, True)] * 4, ("b", 0, 1), None),
    ("the lowest priority first", [("a", 0, 1, False)] * 3 + [("b", -1, 1, False)], ("c", 0, 1), [3]),
    ("however little it has", [("a", 1, 1, False)] * 3 + [("b", 0, 1, False)], ("a", 1, 1), [3]),
    ("never a higher priority", [("a", 1, 1, False)] * 4, ("b", 0, 1), None),
    ("bytes: of the key that has most of them", [("a", 0, 60, False), ("b", 0, 30, False)], ("c", 0, 20), [0]),
    ("bytes: not by one that has more then", [("a", 0, 60, False), ("b", 0, 30, False)], ("c", 0, 70), None),
    ("bytes: several if need be", [("a", 0, 40, False)] * 2, ("b", 0, 30), [1]),
    ("more than there is for all", [("a", -1, 40, False)], ("b", 0, 101), None),
]


@pytest.mark.parametrize(("here", "newcomer", "out"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_whose_place_a_newcomer_gets(
    here: list[tuple[str, int, int, bool]], newcomer: tuple[str, int, int], out: list[int] | None
) -> None:
    backlog, told = Backlog(4, 100), list[int]()
    places = [
        Place(size, Asker(priority, share), firm, lambda i=i: told.append(i))  # type: ignore[misc]
        for i, (share, priority, size, firm) in enumerate(here)
    ]
    share, priority, size = newcomer
    with contextlib.ExitStack() as stack:
        for place in places:
            stack.enter_context(backlog.holds(place))
        fits = backlog.make_room(Place(size, Asker(priority, share)))
        assert (told if fits else None) == out
        assert [i for i, p in enumerate(places) if p.pushed_out] == told
        assert backlog.requests == len(here) - len(told)
    assert (backlog.requests, backlog.size_bytes) == (0, 0)


def test_nothing_waits_where_nothing_may() -> None:
    assert not Backlog(0).make_room(Place(1))


PLACES = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(0, 60), st.booleans()), max_size=40)


@given(PLACES)
def test_the_bound_holds_whoever_comes_and_nobody_is_pushed_out_by_who_has_more(
    places: list[tuple[str, int, int, bool]],
) -> None:
    backlog, here = Backlog(4, 100), list[Place]()
    with contextlib.ExitStack() as stack:
        for share, priority, size, firm in places:
            place = Place(size, Asker(priority, share), firm)
            before = [p for p in here if not p.pushed_out]
            if backlog.make_room(place):
                stack.enter_context(backlog.holds(place))
                here.append(place)
            gone = [p for p in before if p.pushed_out]
            assert not any(p.firm or p.asker.priority > priority or p.asker == place.asker for p in gone)
            left = [p for p in here if not p.pushed_out]
            assert backlog.requests == len(left) <= 4
            assert backlog.size_bytes == sum(p.size_bytes for p in left) <= 100
    assert (backlog.requests, backlog.size_bytes) == (0, 0)
