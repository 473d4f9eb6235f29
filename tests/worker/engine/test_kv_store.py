"""A store finds what was computed, in the pool or in host memory, and never takes more than is
free.
"""

from __future__ import annotations

import pytest

from disagg_protocol.errors import NoCapacity
from disagg_worker.engine.block_pool import State
from disagg_worker.engine.kv_store import KvStore

NAMES = [b"first", b"second", b"third"]


class Memory:
    """The bytes of blocks in a dict."""

    def __init__(self) -> None:
        self.content: dict[int, bytes] = {}

    def read(self, block: int) -> bytes:
        return self.content.get(block, b"nothing")

    def write(self, block: int, content: bytes) -> None:
        self.content[block] = content


def store(total: int = 4, host_bytes: int = 0) -> tuple[KvStore, Memory]:
    memory = Memory()
    return KvStore(total, "lru", host_bytes, memory), memory


def compute(kv: KvStore, memory: Memory, names: list[bytes]) -> None:
    """Fill one block for each name, and give them back."""
    holding, hits = kv.acquire(names, len(names))
    for block, name in zip(holding.blocks[hits:], names[hits:], strict=True):
        memory.write(block, name)
    kv.register(holding, 0, names)
    kv.pool.free(holding)


def test_what_was_computed_is_found_from_its_start_on() -> None:
    kv, memory = store()
    compute(kv, memory, NAMES)
    holding, hits = kv.acquire([*NAMES[:2], b"other"], 4)
    assert hits == 2
    assert [memory.read(block) for block in holding.blocks[:2]] == NAMES[:2]
    assert (len(set(holding.blocks)), kv.free) == (4, 0)


def test_a_name_after_one_that_is_not_there_is_not_looked_for() -> None:
    kv, memory = store()
    compute(kv, memory, NAMES)
    assert kv.acquire([b"other", NAMES[0]], 2)[1] == 0


def test_no_more_names_are_looked_for_than_blocks_are_wanted() -> None:
    kv, memory = store()
    compute(kv, memory, NAMES)
    holding, hits = kv.acquire(NAMES, 2)
    assert (len(holding.blocks), hits) == (2, 2)


def test_a_block_that_somebody_uses_costs_the_next_one_nothing() -> None:
    kv, memory = store()
    compute(kv, memory, NAMES)
    first, _ = kv.acquire(NAMES, 3)
    second, hits = kv.acquire(NAMES, 3)
    assert (second.blocks, hits, kv.free) == (first.blocks, 3, 1)


@pytest.mark.parametrize(("n", "keep_free"), [(5, 0), (4, 1), (1, 4)])
def test_what_is_not_free_is_refused_and_nothing_is_taken(n: int, keep_free: int) -> None:
    kv, _ = store()
    with pytest.raises(NoCapacity, match="4 of 4 are free"):
        kv.acquire([], n, keep_free)
    assert (kv.free, kv.pool.count(State.USED)) == (4, 0)
    assert len(kv.acquire([], 3, 1)[0].blocks) == 3


def test_what_was_driven_out_comes_back_from_host_memory() -> None:
    kv, memory = store(total=3, host_bytes=100)
    compute(kv, memory, NAMES)
    compute(kv, memory, [b"x", b"y", b"z"])
    assert [kv.host.find(name) is not None for name in NAMES] == [True] * 3
    holding, hits = kv.acquire(NAMES, 3)
    assert hits == 3
    assert [memory.read(block) for block in holding.blocks] == NAMES
    assert [kv.host.find(name) for name in NAMES] == [None] * 3
    assert [kv.pool.find(name) is not None for name in NAMES] == [True] * 3


def test_without_host_memory_what_was_driven_out_is_lost() -> None:
    kv, memory = store(total=3)
    compute(kv, memory, NAMES)
    compute(kv, memory, [b"x", b"y", b"z"])
    assert kv.acquire(NAMES, 3)[1] == 0


def test_content_is_in_the_pool_or_in_host_memory_and_not_in_both() -> None:
    kv, _ = store(host_bytes=100)
    kv.host.put(NAMES[0], b"old")
    holding, _ = kv.acquire([], 1)
    kv.register(holding, 0, NAMES[:1])
    assert kv.pool.find(NAMES[0]) is not None
    assert kv.host.find(NAMES[0]) is None


def test_a_lease_shares_what_is_in_the_pool_and_keeps_it_there() -> None:
    kv, memory = store(total=6)
    compute(kv, memory, NAMES)
    holding, held = kv.lease([*NAMES[:2], b"other"], 4)
    assert held == 2
    assert [memory.read(block) for block in holding.blocks[:2]] == NAMES[:2]
    assert (len(set(holding.blocks)), kv.free, kv.pool.count(State.LEASED)) == (4, 2, 4)
    others = kv.pool.allocate(2, State.USED)  # They evict what nobody holds.
    assert (kv.pool.find(NAMES[0]) is not None, kv.pool.find(NAMES[2])) == (True, None)
    kv.pool.free(holding)
    kv.pool.free(others)
    assert (kv.free, kv.pool.find(NAMES[0]) is not None) == (6, True)


def test_two_leases_share_the_same_blocks_and_each_gives_back_its_own() -> None:
    kv, memory = store(total=6)
    compute(kv, memory, NAMES)
    assert kv.owned(NAMES) == 0
    one, _ = kv.lease(NAMES, 4)
    assert kv.owned(NAMES) == 3
    two, held = kv.lease(NAMES, 4)
    assert (held, one.blocks[:3] == two.blocks[:3], kv.free) == (3, True, 1)
    kv.pool.free(one)
    assert (kv.owned(NAMES), kv.free) == (3, 2)
    kv.pool.free(two)
    assert (kv.owned(NAMES), kv.free) == (0, 6)


def test_a_lease_that_finds_no_room_takes_nothing() -> None:
    kv, memory = store(total=4)
    compute(kv, memory, NAMES)
    with pytest.raises(NoCapacity):
        kv.lease(NAMES, 5)
    assert (kv.free, kv.owned(NAMES), kv.leading(NAMES)) == (4, 0, 3)


def test_a_lease_never_takes_more_names_than_blocks_and_none_from_host_memory() -> None:
    kv, memory = store(total=3, host_bytes=100)
    compute(kv, memory, NAMES)
    assert kv.lease(NAMES, 2)[1] == 2
    kv, memory = store(total=3, host_bytes=100)
    compute(kv, memory, NAMES)
    kv.pool.free(kv.pool.allocate(3, State.USED))
    assert kv.host.find(NAMES[0]) is not None
    assert (kv.leading(NAMES), kv.lease(NAMES, 3)[1]) == (0, 0)
