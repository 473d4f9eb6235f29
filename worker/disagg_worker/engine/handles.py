"""The handles that callers of the engine hold; they call the engine, which takes its lock."""

from __future__ import annotations

from typing import Protocol

from disagg_worker.engine.block_pool import Holding, blocks_for
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.sequence import Sequence
from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.values.kv_blocks import KvBlocks


class SequenceOwner(Protocol):
    """The part of the engine that handles need."""

    def cancel_sequence(self, sequence: Sequence) -> None: ...
    def release_sequence(self, sequence: Sequence) -> None: ...
    def release_reserved(self, reserved: HeldBlocks) -> None: ...


class SequenceHandle:
    """Implements contract.PrefillHandle and contract.DecodeHandle."""

    def __init__(self, owner: SequenceOwner, sequence: Sequence) -> None:
        self._owner = owner
        self._sequence = sequence

    def cancel(self) -> None:
        self._owner.cancel_sequence(self._sequence)

    def release(self) -> None:
        self._owner.release_sequence(self._sequence)


class HeldBlocks:
    """Implements contract.Reservation.

    `holding` has the blocks of the announced tokens first, then those for growth. The first
    `held_blocks` of them are shared: they have their KV, and others may read them.
    """

    def __init__(
        self,
        owner: SequenceOwner,
        request_id: str,
        tokens: int,
        most_tokens: int,
        holding: Holding,
        store: KvStore,
        memory: CacheMemory,
        held_blocks: int = 0,
    ) -> None:
        self._owner = owner
        self.request_id = request_id
        self.tokens = tokens
        self.most_tokens = most_tokens
        self.holding = holding
        self.held_blocks = held_blocks
        self.ended = False
        self.in_region = False
        self._store = store
        self._memory = memory

    @property
    def n_blocks(self) -> int:
        return blocks_for(self.tokens, self._memory.layout.block_size_tokens)

    def blocks(self, first: int, n: int) -> KvBlocks:
        """Implement Reservation.blocks.

        Raises ValueError if the reservation has ended, IndexError for a block outside of it, and
        StaleReference if a block is no longer its own.
        """
        if self.ended:
            raise ValueError("the reservation has ended")
        if not 0 <= first <= first + n <= self.n_blocks:
            raise IndexError(f"blocks {first}+{n}: outside of the reservation")
        pool = self._store.pool
        return KvBlocks(self._memory, [pool.ref(self.holding, i).block for i in range(first, first + n)])

    def written_in_region(self) -> None:
        self.in_region = True

    def release(self) -> None:
        self._owner.release_reserved(self)
