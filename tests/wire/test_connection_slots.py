"""Tests of who gives way where a port has too many connections."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.connection_slots import ConnectionSlots


def full(most: int = 3) -> ConnectionSlots[str]:
    slots = ConnectionSlots[str](most)
    for name in ("a1", "a2", "b1"):
        assert slots.enter(name, name[0]) is None
    return slots


def test_the_oldest_of_the_peer_with_the_most_goes() -> None:
    slots = full()
    assert slots.enter("c1", "c") == "a1"
    assert slots.peers() == {"a": 1, "b": 1, "c": 1}


def test_a_peer_that_connects_again_and_again_drives_out_itself() -> None:
    slots = full()
    assert [slots.enter(f"a{i}", "a") for i in range(3, 9)] == ["a1", "a2", "a3", "a4", "a5", "a6"]
    assert slots.peers() == {"a": 2, "b": 1}


def test_what_is_engaged_stays() -> None:
    slots = full()
    slots.engage("a1")
    slots.engage("a2")
    slots.engage("a2")
    assert slots.enter("c1", "c") == "b1"
    slots.engage("c1")
    assert slots.enter("c2", "c") == "c2"  # only itself is left
    slots.disengage("a2")
    slots.disengage("a2")
    assert slots.enter("c3", "c") == "a2"
    assert len(slots) == 3


def test_what_is_not_here_is_left_alone() -> None:
    slots = full()
    slots.engage("a1")
    slots.leave("a1")
    for call in (slots.leave, slots.engage, slots.disengage):
        call("a1")
        call("x")
    assert slots.peers() == {"a": 1, "b": 1}


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("eEdl"), st.integers(0, 9), st.sampled_from("abc"))))
def test_there_are_never_too_many(most: int, steps: list[tuple[str, int, str]]) -> None:
    slots, engaged, open_ = ConnectionSlots[int](most), set[int](), set[int]()
    for number, (what, key, peer) in enumerate(steps):
        if what == "e":
            victim = slots.enter(100 + number, peer)
            assert victim not in engaged
            open_ = (open_ | {100 + number}) - {victim}
        elif what == "E":
            slots.engage(key + 100)
            engaged |= {key + 100} & open_
        elif what == "d":
            slots.disengage(key + 100)
            engaged.discard(key + 100)
        else:
            slots.leave(key + 100)
            engaged.discard(key + 100)
            open_.discard(key + 100)
        assert len(slots) <= most
        assert slots.peers().total() == len(slots)
