"""The KV of one prompt in the layout of an 8B model."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from disagg_worker.values.kv_blocks import KvBlocks, Region
from disagg_worker.values.layouts import KvLayout

# Llama 3.1 8B in bfloat16, with blocks of the default size.
LAYOUT = KvLayout(layers=32, kv_heads=8, head_dim=128, block_size_tokens=16, dtype="bfloat16", itemsize_bytes=2)
TOKENS = 4096
# The incarnation of the sending worker.
PREFILL = "prefill/boot"


class Memory:
    """Implements contract.Reservation and kv_blocks.KvCache, block-major as the cache is."""

    layout = LAYOUT
    held_blocks = 0

    def __init__(self, fill: int) -> None:
        self.n_blocks = TOKENS // LAYOUT.block_size_tokens
        self._room = self.n_blocks
        self.bytes = bytearray([fill]) * (TOKENS * LAYOUT.bytes_per_token)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        self.region = Region(address, LAYOUT.layers * LAYOUT.layer_block_bytes, self.n_blocks)

    def view(self, layer: int, block: int) -> memoryview:
        return self._views(layer, [block])[0]

    def _views(self, layer: int, ids: Sequence[int]) -> list[memoryview]:
        """Return what disagg_worker.execution.cache_memory does, in the same way."""
        held, size = memoryview(self.bytes), LAYOUT.layer_block_bytes
        first, step = layer * size, LAYOUT.layers * size
        # The blocks of a prompt that is longer lie on those before them.
        starts = [first + block % self._room * step for block in ids]
        return [held[start : start + size] for start in starts]

    def reading(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        return nullcontext(self._views(layer, ids))

    def writing(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        return self.reading(layer, ids)

    def blocks(self, first: int, n: int) -> KvBlocks:
        return KvBlocks(self, range(first, first + n))

    def written_in_region(self) -> None:
        """Note nothing: here the region is what the views show."""

    def release(self) -> None:
        """Give nothing back: there is no pool."""
