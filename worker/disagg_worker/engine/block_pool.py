"""PURE: The pool of KV blocks: their owners and their content.

Invariant: free + used + leased = total.

A full block whose content has a name (prefix_hash) may be shared; it has as many references as
owners. When the last owner frees it, the block keeps its content, so that a later prompt can find
it, until it is evicted for other content. The generation of a block rises whenever its content is
given up, and every use of a reference compares it: a stale reference raises an error and never
reads the KV of another request.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from disagg_protocol.errors import NoCapacity
from disagg_wire.eviction import Eviction


class State(Enum):
    """The state of a block.

    A block is `used` if a sequence computes with it, whatever its other owners do. It is `leased`
    if it waits for its KV to arrive or to be sent.
    """

    FREE = "free"
    USED = "used"
    LEASED = "leased"


class StaleReference(Exception):
    """Raised when the content of a block has been given up since the reference was made."""


class BlockRef(NamedTuple):
    """A reference to a block with the content that it has now."""

    block: int
    generation: int


@dataclass(slots=True, eq=False)
class Holding:
    """The blocks of one owner in the order of its tokens; empty once it has been freed."""

    state: State
    blocks: list[int]
    generations: list[int]


class BlockPool:
    """Hands out block numbers.

    Empty blocks are handed out first, then cached ones: `lru` evicts the content that nobody has
    used for longest, `fifo` the content that was computed first. `on_evict(name, block)` is called
    before cached content is given up.
    """

    def __init__(
        self, total: int, eviction: Eviction = "lru", on_evict: Callable[[bytes, BlockRef], None] | None = None
    ) -> None:
        self.total = total
        self._lru = eviction == "lru"
        self._on_evict = on_evict
        self._refs = {State.USED: [0] * total, State.LEASED: [0] * total}
        self._counts = {State.FREE: total, State.USED: 0, State.LEASED: 0}
        self._generation = [0] * total
        self._name: list[bytes | None] = [None] * total
        self._named: dict[bytes, BlockRef] = {}
        self._empty = deque(range(total))
        # A heap of (stamp, block) of the free blocks with content. An entry whose stamp is not the
        # block's own is out of date.
        self._cached: list[tuple[int, int]] = []
        self._stamp = [0] * total
        self._clock = 0

    def count(self, state: State) -> int:
        return self._counts[state]

    def state(self, block: int) -> State:
        if self._refs[State.USED][block]:
            return State.USED
        return State.LEASED if self._refs[State.LEASED][block] else State.FREE

    def check(self, ref: BlockRef) -> int:
        """Return the block's number. Raises StaleReference."""
        if (found := self._generation[ref.block]) != ref.generation:
            raise StaleReference(f"block {ref.block} is of generation {found}, the reference is of {ref.generation}")
        return ref.block

    def ref(self, holding: Holding, index: int) -> BlockRef:
        """Return a reference to the holding's `index`-th block. Raises StaleReference."""
        ref = BlockRef(holding.blocks[index], holding.generations[index])
        self.check(ref)
        return ref

    # ---- Owners ----

    def allocate(self, n: int, state: State) -> Holding:
        """Return a holding of n free blocks. Raises NoCapacity, taking none, if there are fewer."""
        holding = Holding(state, [], [])
        self.extend(holding, n)
        return holding

    def extend(self, holding: Holding, n: int) -> None:
        """Add n free blocks to a holding. Raises NoCapacity, taking none, if there are fewer."""
        if n > self._counts[State.FREE]:
            raise NoCapacity(f"{n} KV blocks are needed, {self._counts[State.FREE]} of {self.total} are free")
        for _ in range(n):
            block = self._empty.popleft() if self._empty else self._evict()
            self._add(block, holding.state)
            holding.blocks.append(block)
            holding.generations.append(self._generation[block])

    def share(self, holding: Holding, ref: BlockRef) -> None:
        """Add a block with content to a holding, as one more owner. Raises StaleReference."""
        self._add(self.check(ref), holding.state)
        holding.blocks.append(ref.block)
        holding.generations.append(ref.generation)

    def convert(self, holding: Holding, new: State) -> None:
        """Change the state in which the blocks are held.

        Raises StaleReference and changes nothing if a block is no longer this owner's.
        """
        self._check_all(holding)
        for block in holding.blocks:
            self._add(block, new)
            self._drop(block, holding.state)
        holding.state = new

    def free(self, holding: Holding) -> None:
        """Give an owner's blocks back, the last block first because the end of a prefix is worth
        less than its start.

        Raises StaleReference and frees none if one was freed already.
        """
        self._check_all(holding)
        for block in reversed(holding.blocks):
            self._drop(block, holding.state)
            if self.state(block) is State.FREE:
                self._retire(block)
        holding.blocks, holding.generations = [], []

    # ---- Content ----

    def find(self, name: bytes) -> BlockRef | None:
        """Return a block with this content, owned or not."""
        return self._named.get(name)

    def register(self, ref: BlockRef, name: bytes) -> None:
        """Name the content of an owned block.

        Does nothing if another block has this content already. Raises StaleReference.
        """
        block = self.check(ref)
        if self._name[block] is None and name not in self._named:
            self._name[block] = name
            self._named[name] = ref
            self._clock += 1
            self._stamp[block] = self._clock

    def forget(self, holding: Holding) -> None:
        """Make the content of these blocks impossible to find."""
        for block in holding.blocks:
            self._unname(block)

    def _unname(self, block: int) -> None:
        if (name := self._name[block]) is not None:
            del self._named[name]
            self._name[block] = None

    def _retire(self, block: int) -> None:
        """Make a block free whose last owner has gone."""
        if self._name[block] is None:
            self._generation[block] += 1
            self._empty.append(block)
            return
        if self._lru:
            self._clock += 1
            self._stamp[block] = self._clock
        heapq.heappush(self._cached, (self._stamp[block], block))
        if len(self._cached) > 4 * self.total:  # Most entries are out of date.
            self._cached = [entry for entry in set(self._cached) if self._evictable(entry)]
            heapq.heapify(self._cached)

    def _evictable(self, entry: tuple[int, int]) -> bool:
        stamp, block = entry
        return self._stamp[block] == stamp and self._name[block] is not None and self.state(block) is State.FREE

    def _evict(self) -> int:
        """Evict the content of a free block and return the block.

        The caller has made sure that there is one.
        """
        while not self._evictable(entry := heapq.heappop(self._cached)):
            pass
        block = entry[1]
        name = self._name[block]
        if self._on_evict is not None and name is not None:
            self._on_evict(name, BlockRef(block, self._generation[block]))
        self._unname(block)
        self._generation[block] += 1
        return block

    # ---- Counts ----

    def _check_all(self, holding: Holding) -> None:
        refs = self._refs[holding.state]
        for block, generation in zip(holding.blocks, holding.generations, strict=True):
            self.check(BlockRef(block, generation))
            if not refs[block]:
                raise StaleReference(f"block {block} is not {holding.state.value}")

    def _add(self, block: int, state: State) -> None:
        self._counts[self.state(block)] -= 1
        self._refs[state][block] += 1
        self._counts[self.state(block)] += 1

    def _drop(self, block: int, state: State) -> None:
        self._counts[self.state(block)] -= 1
        self._refs[state][block] -= 1
        self._counts[self.state(block)] += 1


def blocks_for(tokens: int, block_size_tokens: int) -> int:
    """Return the number of blocks that hold `tokens` tokens."""
    return -(-tokens // block_size_tokens)
