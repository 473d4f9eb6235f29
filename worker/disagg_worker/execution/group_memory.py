"""The cache of a group as rank 0 shows it: all heads, read and written through shared buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.execution.shared_staging import Move, SharedStaging
from disagg_worker.values.layouts import KvLayout

# Lets the other ranks begin a move, and returns a function that waits until they are done.
Begin = Callable[[Move], Callable[[], None]]


class GroupMemory(CacheMemory):
    """The part of rank 0, and the way to the parts of the others.

    The threads that send or receive KV let all ranks copy their heads, beside the steps.
    """

    def __init__(
        self,
        layout: KvLayout,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        heads: slice,
        buffers: SharedStaging,
        begin: Begin,
    ) -> None:
        super().__init__(layout, blocks, dtype, device, heads)
        self.buffers = buffers
        self._begin = begin

    @contextmanager
    def reading(self, layer: int, ids: Sequence[int]) -> Iterator[Sequence[memoryview]]:
        with self.buffers.take(len(ids) * self.layout.layer_block_bytes) as buffer:
            self._all_move(Move(False, layer, self.buffers.memory.offset(buffer), ids))
            yield [buffer.numpy().data]

    @contextmanager
    def writing(self, layer: int, ids: Sequence[int]) -> Iterator[Sequence[memoryview]]:
        with self.buffers.take(len(ids) * self.layout.layer_block_bytes) as buffer:
            yield [buffer.numpy().data]
            self._all_move(Move(True, layer, self.buffers.memory.offset(buffer), ids))

    def _all_move(self, move: Move) -> None:
        others_are_done = self._begin(move)
        try:
            self.move(self.buffers.memory, move)
        finally:
            others_are_done()  # Until then, nobody else may have the buffer.
