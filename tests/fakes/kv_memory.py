"""A KV cache in ordinary memory, for tests of those who move KV."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from disagg_worker.values.kv_blocks import KvBlocks, Region
from disagg_worker.values.layouts import KvLayout


class KvMemory:
    """Implements kv_blocks.KvCache: blocks one after the other, whose bytes are read and written in
    place. They are `fill`, again and again, at first.
    """

    def __init__(self, layout: KvLayout, n_blocks: int, fill: bytes = b"\0") -> None:
        size = n_blocks * layout.layers * layout.layer_block_bytes
        self.layout = layout
        self.n_blocks = n_blocks
        self.bytes = bytearray((fill * -(-size // len(fill)))[:size])

    @property
    def region(self) -> Region:
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        return Region(address, self.layout.layers * self.layout.layer_block_bytes, self.n_blocks)

    def view(self, layer: int, block: int) -> memoryview:
        size = self.layout.layer_block_bytes
        start = (block * self.layout.layers + layer) * size
        return memoryview(self.bytes)[start : start + size]

    def reading(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        return nullcontext([self.view(layer, block) for block in ids])

    def writing(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        return self.reading(layer, ids)

    def blocks(self, first: int, n: int) -> KvBlocks:
        return KvBlocks(self, range(first, first + n))
