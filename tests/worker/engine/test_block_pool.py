"""The pool's promise: free + used + leased = total, and no block ever has two owners."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from disagg_worker.engine.api import NoCapacity
from disagg_worker.engine.block_pool import BlockPool, State, blocks_for

HELD = st.sampled_from([State.USED, State.LEASED])
TOTAL = 12


class PoolMachine(RuleBasedStateMachine):
    """Any order of allocating, converting and freeing, with what was handed out kept beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(TOTAL)
        self.held: list[tuple[list[int], State]] = []

    @rule(n=st.integers(0, TOTAL + 3), state=HELD)
    def allocate(self, n: int, state: State) -> None:
        free = self.pool.count(State.FREE)
        if n > free:
            with pytest.raises(NoCapacity):
                self.pool.allocate(n, state)
            assert self.pool.count(State.FREE) == free
        else:
            self.held.append((self.pool.allocate(n, state), state))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), new=HELD)
    def convert(self, data: st.DataObject, new: State) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        blocks, old = self.held[at]
        self.pool.convert(blocks, old, new)
        self.held[at] = (blocks, new)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        blocks, state = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        before = [self.pool.generation[b] for b in blocks]
        self.pool.free(blocks, state)
        assert [self.pool.generation[b] for b in blocks] == [g + 1 for g in before]

    @invariant()
    def counts_add_up(self) -> None:
        counts = {s: self.pool.count(s) for s in State}
        assert sum(counts.values()) == TOTAL
        for state in (State.USED, State.LEASED):
            assert counts[state] == sum(len(b) for b, s in self.held if s is state)

    @invariant()
    def no_block_has_two_owners(self) -> None:
        owned = [b for blocks, _ in self.held for b in blocks]
        assert len(owned) == len(set(owned))
        assert all(0 <= b < TOTAL for b in owned)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_block_freed_twice_is_refused_and_nothing_changes() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2, State.USED)
    pool.free(blocks, State.USED)
    with pytest.raises(ValueError, match="not all used"):
        pool.free(blocks, State.USED)
    assert pool.count(State.FREE) == 4
    assert sorted(pool.allocate(4, State.USED)) == [0, 1, 2, 3]


@pytest.mark.parametrize("wrong", [[0, 0], [0, 1]], ids=["the same block named twice", "one of them owned as leased"])
def test_a_free_that_names_a_wrong_block_frees_none(wrong: list[int]) -> None:
    pool = BlockPool(3)
    assert pool.allocate(1, State.USED) == [0]
    assert pool.allocate(1, State.LEASED) == [1]
    with pytest.raises(ValueError):
        pool.free(wrong, State.USED)
    assert (pool.count(State.FREE), pool.count(State.USED), pool.count(State.LEASED)) == (1, 1, 1)


@given(st.integers(0, 10_000), st.integers(1, 256))
def test_blocks_for_is_the_least_number_that_holds_the_tokens(tokens: int, size: int) -> None:
    n = blocks_for(tokens, size)
    assert n * size >= tokens
    assert (n - 1) * size < tokens or n == 0
