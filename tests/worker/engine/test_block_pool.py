"""Tests of the block pool: free + used + leased = total, shared blocks have owners, and no
reference outlives its content.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.profiles import examples

from disagg_protocol.errors import NoCapacity
from disagg_wire.eviction import Eviction
from disagg_worker.engine.block_pool import BlockPool, BlockRef, Holding, StaleReference, State, blocks_for
from disagg_worker.engine.kv_store import KvStore

HELD = st.sampled_from([State.USED, State.LEASED])
TOTAL = 12
NAMES = [bytes([i]) for i in range(20)]


class Memory:
    """The bytes of blocks in a dict; a block that has been given up reads as its last owner's until
    it is written again.
    """

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}

    def read(self, block: int) -> bytes:
        return self.content[block]

    def write(self, block: int, content: bytes) -> None:
        self.content[block] = content


class StoreMachine(RuleBasedStateMachine):
    """A state machine that allocates, shares, converts, registers, evicts (into the host tier and
    back) and frees blocks in any order, and compares them with a model.
    """

    @initialize(eviction=st.sampled_from(["lru", "fifo"]), host_blocks=st.integers(0, 4))
    def start(self, eviction: Eviction, host_blocks: int) -> None:
        self.memory = Memory()
        self.store = KvStore(TOTAL, eviction, host_blocks, self.memory)
        self.pool = self.store.pool
        self.held: list[tuple[Holding, list[bytes | None]]] = []
        self.gone: list[BlockRef] = []

    def _keep(self, holding: Holding, content: list[bytes | None]) -> None:
        self.held.append((holding, content))

    @rule(n=st.integers(0, TOTAL + 3), state=HELD)
    def allocate(self, n: int, state: State) -> None:
        free = self.pool.count(State.FREE)
        if n > free:
            with pytest.raises(NoCapacity, match=f"{free} of {TOTAL} are free"):
                self.pool.allocate(n, state)
            assert self.pool.count(State.FREE) == free
        else:
            self._keep(self.pool.allocate(n, state), [None] * n)

    @rule(first=st.integers(0, 19), hits=st.integers(0, 6), more=st.integers(0, 4), keep=st.integers(0, 3))
    def acquire(self, first: int, hits: int, more: int, keep: int) -> None:
        names, before = NAMES[first : first + hits], self.pool.count(State.FREE)
        try:
            holding, found = self.store.acquire(names, len(names) + more, keep)
        except NoCapacity:
            assert self.pool.count(State.FREE) == before
            return
        assert self.pool.count(State.FREE) >= keep
        assert holding.state is State.USED
        assert [self.memory.read(b) for b in holding.blocks[:found]] == names[:found]
        self._keep(holding, [*names[:found], *[None] * (len(holding.blocks) - found)])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.integers(0, 19))
    def compute_and_register(self, data: st.DataObject, name: int) -> None:
        holding, content = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        blank = [i for i, c in enumerate(content) if c is None]
        if blank:
            at = data.draw(st.sampled_from(blank))
            self.memory.write(holding.blocks[at], NAMES[name])
            self.store.register(holding, at, [NAMES[name]])
            content[at] = NAMES[name]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), new=HELD)
    def convert(self, data: st.DataObject, new: State) -> None:
        self.pool.convert(self.held[data.draw(st.integers(0, len(self.held) - 1))][0], new)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), n=st.integers(0, 3))
    def grow(self, data: st.DataObject, n: int) -> None:
        holding, content = self.held[data.draw(st.integers(0, len(self.held) - 1))]
        if n <= self.pool.count(State.FREE):
            self.pool.extend(holding, n)
            content += [None] * n

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        holding, content = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        blocks = list(map(BlockRef, holding.blocks, holding.generations))
        twice = Holding(holding.state, list(holding.blocks), list(holding.generations))
        self.pool.free(holding)
        self.gone += [ref for ref, name in zip(blocks, content, strict=True) if name is None]
        if blocks and all(c is None for c in content):
            with pytest.raises(StaleReference):
                self.pool.free(twice)

    @invariant()
    def counts_add_up(self) -> None:
        counts = {s: self.pool.count(s) for s in State}
        assert sum(counts.values()) == TOTAL
        used = {b for h, _ in self.held if h.state is State.USED for b in h.blocks}
        leased = {b for h, _ in self.held if h.state is State.LEASED for b in h.blocks}
        assert (counts[State.USED], counts[State.LEASED]) == (len(used), len(leased - used))

    @invariant()
    def only_content_is_shared_and_nobody_else_writes_it(self) -> None:
        owners = Counter(b for h, _ in self.held for b in h.blocks)
        for holding, content in self.held:
            for i, name in enumerate(content):
                block = self.pool.ref(holding, i).block
                if name is None:
                    assert owners[block] == 1
                else:
                    assert self.memory.read(block) == name

    @invariant()
    def what_was_given_up_is_stale_for_ever(self) -> None:
        for ref in self.gone:
            with pytest.raises(StaleReference):
                self.pool.check(ref)

    @invariant()
    def what_is_found_is_what_was_looked_for(self) -> None:
        for name in NAMES:
            ref = self.pool.find(name)
            if ref is not None:
                assert self.memory.read(self.pool.check(ref)) == name

    @invariant()
    def the_host_tier_keeps_its_bound(self) -> None:
        assert self.store.host.held_bytes == len(self.store.host) <= self.store.host.capacity_bytes


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=examples(80), stateful_step_count=40)


def test_a_holding_freed_twice_is_refused_and_nothing_changes() -> None:
    pool = BlockPool(4)
    holding = pool.allocate(2, State.USED)
    copy = Holding(State.USED, list(holding.blocks), list(holding.generations))
    pool.free(holding)
    with pytest.raises(StaleReference, match="generation"):
        pool.free(copy)
    assert pool.count(State.FREE) == 4
    assert sorted(pool.allocate(4, State.USED).blocks) == [0, 1, 2, 3]


def test_a_shared_block_is_free_when_its_last_owner_has_gone() -> None:
    pool = BlockPool(3)
    first = pool.allocate(1, State.LEASED)
    pool.register(pool.ref(first, 0), b"x")
    ref = pool.find(b"x")
    assert ref is not None
    second = Holding(State.USED, [], [])
    pool.share(second, ref)
    assert (pool.count(State.USED), pool.count(State.LEASED)) == (1, 0)
    pool.free(second)
    assert (pool.count(State.USED), pool.count(State.LEASED)) == (0, 1)
    pool.free(first)
    assert pool.count(State.FREE) == 3
    assert pool.find(b"x") == ref


def _evicted(eviction: Eviction) -> list[bytes]:
    """Return the order of eviction of the blocks a, b, c, which are computed in this order, after a
    has been used again.
    """
    order: list[bytes] = []
    pool = BlockPool(3, eviction, lambda name, _: order.append(name))
    for name in (b"a", b"b", b"c"):
        holding = pool.allocate(1, State.USED)
        pool.register(pool.ref(holding, 0), name)
        pool.free(holding)
    again, ref = Holding(State.USED, [], []), pool.find(b"a")
    assert ref is not None
    pool.share(again, ref)
    pool.free(again)
    pool.allocate(3, State.USED)
    with pytest.raises(StaleReference):
        pool.share(Holding(State.USED, [], []), ref)
    return order


def test_lru_gives_up_what_was_unused_for_longest_and_fifo_what_is_oldest() -> None:
    assert _evicted("lru") == [b"b", b"c", b"a"]
    assert _evicted("fifo") == [b"a", b"b", b"c"]


def test_the_start_of_a_prefix_outlives_its_end() -> None:
    order: list[bytes] = []
    pool = BlockPool(3, "lru", lambda name, _: order.append(name))
    holding = pool.allocate(3, State.USED)
    for i, name in enumerate((b"0", b"1", b"2")):
        pool.register(pool.ref(holding, i), name)
    pool.free(holding)
    pool.allocate(3, State.USED)
    assert order == [b"2", b"1", b"0"]


def test_content_that_is_forgotten_is_not_found_again() -> None:
    pool = BlockPool(2)
    holding = pool.allocate(1, State.USED)
    pool.register(pool.ref(holding, 0), b"x")
    pool.forget(holding)
    assert pool.find(b"x") is None
    pool.free(holding)
    assert pool.count(State.FREE) == 2


@pytest.mark.parametrize("eviction", ["lru", "fifo"])
def test_a_prefix_that_is_used_for_ever_costs_no_memory(eviction: Eviction) -> None:
    pool = BlockPool(2, eviction)
    holding = pool.allocate(1, State.USED)
    pool.register(pool.ref(holding, 0), b"x")
    pool.free(holding)
    for _ in range(100):
        ref = pool.find(b"x")
        assert ref is not None
        pool.share(holding := Holding(State.USED, [], []), ref)
        pool.free(holding)
    assert len(pool._cached) <= 4 * 2
    assert sorted(pool.allocate(2, State.USED).blocks) == [0, 1]


@given(st.integers(0, 10_000), st.integers(1, 256))
def test_blocks_for_is_the_least_number_that_holds_the_tokens(tokens: int, size: int) -> None:
    n = blocks_for(tokens, size)
    assert n * size >= tokens
    assert (n - 1) * size < tokens or n == 0


def test_cached_content_that_nobody_owns_any_more_can_not_be_given_back_again() -> None:
    pool = BlockPool(2)
    holding = pool.allocate(1, State.USED)
    pool.register(pool.ref(holding, 0), b"x")
    copy = Holding(State.USED, list(holding.blocks), list(holding.generations))
    pool.free(holding)
    for use in (pool.free, lambda held: pool.convert(held, State.LEASED)):
        with pytest.raises(StaleReference, match="block 0 is not used"):
            use(copy)
    assert pool.count(State.FREE) == 2


def test_to_forget_a_block_without_a_name_changes_nothing() -> None:
    pool = BlockPool(2)
    holding = pool.allocate(2, State.USED)
    pool.register(pool.ref(holding, 0), b"x")
    pool.forget(holding)
    assert pool.find(b"x") is None
    pool.register(pool.ref(holding, 1), b"x")
    assert pool.find(b"x") == pool.ref(holding, 1)
