"""The handles that callers of the engine hold; they call the engine, which takes its lock."""

from __future__ import annotations

from typing import Protocol

from disagg_worker.engine.block_pool import Holding, blocks_for
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.sequence import Sequence
from disagg_worker.execution.cache_memory import CacheMemory


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

    `holding` has the blocks of the announced tokens first, then those for growth.
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
    ) -> None:
        self._owner = owner
        self.request_id = request_id
        self.tokens = tokens
        self.most_tokens = most_tokens
        self.holding = holding
        self.ended = False
        self._store = store
        self._memory = memory

    @property
    def n_blocks(self) -> int:
        return blocks_for(self.tokens, self._memory.layout.block_size_tokens)

    def layer_view(self, layer: int, block: int) -> memoryview:
        """Implement Reservation.layer_view.

        Raises ValueError if the reservation has ended, IndexError for a block outside of it, and
        StaleReference if the block is no longer its own.
        """
        if self.ended:
            raise ValueError("the reservation has ended")
        if not (0 <= layer < self._memory.layout.layers and 0 <= block < self.n_blocks):
            raise IndexError(f"layer {layer}, block {block}: outside of the reservation")
        return self._memory.view(layer, self._store.pool.ref(self.holding, block).block)

    def release(self) -> None:
        self._owner.release_reserved(self)
