"""What callers of the engine hold: thin fronts that pass the engine's lock."""

from __future__ import annotations

from typing import Protocol

from disagg_worker.engine.block_pool import State, blocks_for
from disagg_worker.engine.cache_memory import CacheMemory
from disagg_worker.engine.sequence import Sequence


class SequenceOwner(Protocol):
    """The part of the engine that handles need."""

    def cancel_sequence(self, sequence: Sequence) -> None: ...
    def release_sequence(self, sequence: Sequence) -> None: ...
    def release_reserved(self, reserved: HeldBlocks) -> None: ...


class SequenceHandle:
    """Implements api.PrefillHandle and api.DecodeHandle."""

    def __init__(self, owner: SequenceOwner, sequence: Sequence) -> None:
        self._owner = owner
        self._sequence = sequence

    def cancel(self) -> None:
        self._owner.cancel_sequence(self._sequence)

    def release(self) -> None:
        self._owner.release_sequence(self._sequence)


class HeldBlocks:
    """Implements api.Reservation. `blocks` holds the announced tokens first, then the growth."""

    def __init__(self, owner: SequenceOwner, request_id: str, tokens: int, blocks: list[int], memory: CacheMemory) -> None:
        self._owner = owner
        self.request_id = request_id
        self.tokens = tokens
        self.blocks = blocks
        self.state = State.LEASED
        self._memory = memory

    @property
    def n_blocks(self) -> int:
        return blocks_for(self.tokens, self._memory.layout.block_size_tokens)

    def layer_view(self, layer: int, block: int) -> memoryview:
        if self.state is not State.LEASED:
            raise ValueError("the reservation has ended")
        if not (0 <= layer < self._memory.layout.layers and 0 <= block < self.n_blocks):
            raise IndexError(f"layer {layer}, block {block}: outside of the reservation")
        return self._memory.view(layer, self.blocks[block])

    def release(self) -> None:
        self._owner.release_reserved(self)
