"""Tests of the ledger: what it promises is there, and what is given back is free again."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from disagg_adapter.ledger import Ledger
from disagg_protocol.errors import NoCapacity
from disagg_wire.room import Room

BLOCK = 16


def test_a_promise_covers_the_tokens_and_their_growth_in_whole_blocks() -> None:
    ledger = Ledger(10, BLOCK, 4, growth_reserve_tokens=20)
    ledger.reserve("a", 30, 100)  # 50 tokens: 4 blocks
    assert ledger.free_blocks() == 6
    ledger.reserve("b", 30, 2)  # what is never generated needs no room
    assert ledger.free_blocks() == 4
    assert ledger.room(0.5) == Room(64, 160, 2, 4, 0.5)


def test_beyond_the_blocks_and_beyond_the_seats_nothing_is_promised() -> None:
    ledger = Ledger(10, BLOCK, 2, 1)
    ledger.reserve("a", 15, 9)
    with pytest.raises(NoCapacity, match="10 KV blocks are needed, 9 are free"):
        ledger.reserve("b", 159, 9)
    assert len(ledger) == 1
    ledger.reserve("b", 15, 9)
    with pytest.raises(NoCapacity, match="all 2 seats are taken"):
        ledger.reserve("c", 1, 1)


def test_growth_uses_the_reserve_first() -> None:
    ledger = Ledger(10, BLOCK, 2, 32)
    ledger.reserve("a", 16, 100)
    assert ledger.free_blocks() == 7
    ledger.grew("a", 32)
    assert ledger.free_blocks() == 7
    ledger.grew("a", 1)
    assert ledger.free_blocks() == 6
    ledger.grew("a", 1000)
    assert ledger.free_blocks() == 0


def test_what_the_gauge_says_counts_where_it_is_more() -> None:
    ledger = Ledger(100, BLOCK, 8, 1)
    ledger.read(0.25, 1.0)
    assert ledger.free_blocks() == 75
    ledger.read(math.nan, 2.0)
    assert ledger.free_blocks() == 75
    ledger.read(7.0, 3.0)
    assert ledger.free_blocks() == 0
    ledger.read(-1.0, 4.0)
    assert ledger.free_blocks() == 100


def test_a_reading_that_is_older_than_a_request_does_not_show_it() -> None:
    ledger = Ledger(100, BLOCK, 8, 1)
    ledger.read(0.5, 10.0)
    ledger.reserve("a", 159, 1)  # 10 blocks
    assert ledger.free_blocks() == 40
    ledger.begun("a", 12.0)
    # The same reading is looked at again and again: it is still of 10.0.
    ledger.read(0.5, 10.0)
    assert ledger.free_blocks() == 40
    ledger.read(0.5, 12.0)
    assert ledger.free_blocks() == 40
    ledger.read(0.6, 12.5)
    assert ledger.free_blocks() == 40
    ledger.read(0.5, 13.0)
    assert ledger.free_blocks() == 50


def test_unknown_names_are_no_errors() -> None:
    ledger = Ledger(10, BLOCK, 2, 1)
    ledger.begun("x", 1.0)
    ledger.grew("x", 1)
    ledger.release("x")
    assert (ledger.free_blocks(), ledger.blocks, len(ledger)) == (10, 10, 0)


@given(
    blocks=st.integers(0, 50),
    usage=st.floats(0, 1),
    sizes=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=12),
)
def test_released_is_as_before(blocks: int, usage: float, sizes: list[tuple[int, int]]) -> None:
    ledger = Ledger(blocks, BLOCK, 6, 64)
    ledger.read(usage, 1.0)
    before = ledger.room(0.0)
    for i, (tokens, new) in enumerate(sizes):
        try:
            ledger.reserve(str(i), tokens, new)
        except NoCapacity:
            continue
        ledger.grew(str(i), new)
    for i in range(len(sizes)):
        ledger.release(str(i))
    assert ledger.room(0.0) == before


class Promises(RuleBasedStateMachine):
    """The ledger beside an engine that holds what begun requests hold, and something foreign."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 40
        self.ledger = Ledger(self.blocks, BLOCK, 6, 32)
        self.held: dict[str, int] = {}
        self.begun: dict[str, int] = {}
        self.now_s = 1.0
        self.count = 0

    @rule(tokens=st.integers(1, 400), new=st.integers(1, 200))
    def reserve(self, tokens: int, new: int) -> None:
        free = self.ledger.free_blocks()
        self.count += 1
        needed = -(-(tokens + min(32, new)) // BLOCK)
        try:
            self.ledger.reserve(str(self.count), tokens, new)
        except NoCapacity:
            assert needed > free or len(self.held) == 6
        else:
            assert needed <= free
            self.held[str(self.count)] = needed
            # Requests have no room beside the others only if they grew beyond their reserve.
            assert sum(self.held.values()) <= self.blocks

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.now_s += 1
        self.ledger.begun(name, self.now_s)
        self.begun[name] = self.held[name]

    @rule()
    def look(self) -> None:
        self.now_s += 1
        self.ledger.read(sum(self.begun.values()) / self.blocks, self.now_s)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held)))
        self.ledger.release(name)
        del self.held[name]
        self.begun.pop(name, None)

    @invariant()
    def never_more_than_there_is(self) -> None:
        assert 0 <= self.ledger.free_blocks() <= self.blocks - sum(self.held.values())


TestPromises = Promises.TestCase
