"""PURE: who owns which KV block. Invariant: free + used + leased = total, and no block has two owners."""

from __future__ import annotations

from collections import deque
from enum import Enum

from disagg_worker.engine.api import NoCapacity


class State(Enum):
    FREE = "free"
    USED = "used"
    LEASED = "leased"


class BlockPool:
    """Hands out block numbers. `used`: a sequence computes with them; `leased`: they wait for KV to come, or to be sent off.

    Every block has a generation that rises whenever it is freed, so a stale reference can be told from a fresh one.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = deque(range(total))
        self._state = [State.FREE] * total
        self._counts = {State.FREE: total, State.USED: 0, State.LEASED: 0}
        self.generation = [0] * total

    def count(self, state: State) -> int:
        return self._counts[state]

    def allocate(self, n: int, state: State) -> list[int]:
        """Take n free blocks, oldest freed first. Raises NoCapacity, taking none."""
        if n > len(self._free):
            raise NoCapacity(f"{n} KV blocks are needed, {len(self._free)} of {self.total} are free")
        blocks = [self._free.popleft() for _ in range(n)]
        self._move(blocks, State.FREE, state)
        return blocks

    def convert(self, blocks: list[int], old: State, new: State) -> None:
        """Change what owned blocks are held for."""
        self._move(blocks, old, new)

    def free(self, blocks: list[int], state: State) -> None:
        """Give blocks back. Raises ValueError, freeing none, when one is not in `state` (it was freed twice)."""
        self._move(blocks, state, State.FREE)
        for block in blocks:
            self.generation[block] += 1
            self._free.append(block)

    def _move(self, blocks: list[int], old: State, new: State) -> None:
        if any(self._state[b] is not old for b in blocks) or len(set(blocks)) != len(blocks):
            raise ValueError(f"blocks {blocks} are not all {old.value}")
        for block in blocks:
            self._state[block] = new
        self._counts[old] -= len(blocks)
        self._counts[new] += len(blocks)


def blocks_for(tokens: int, block_size_tokens: int) -> int:
    """How many blocks hold that many tokens."""
    return -(-tokens // block_size_tokens)
