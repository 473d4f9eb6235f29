"""PURE: Blocks of a KV cache as those see them who move KV: by number, in a region of memory.

The region may be that of a device, which no memoryview shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from disagg_worker.values.layouts import KvLayout


@dataclass(frozen=True, slots=True)
class Region:
    """The memory in which the blocks lie, one after the other, each in one piece."""

    address: int
    block_bytes: int
    blocks: int
    device: int | None = None
    """The number of the GPU that has this memory; None for host memory."""

    def piece(self, block: int) -> tuple[int, int, int]:
        """Return address, length and device of a block, as NIXL takes them."""
        return self.address + block * self.block_bytes, self.block_bytes, self.device or 0


class KvCache(Protocol):
    """The cache of one worker."""

    layout: KvLayout

    @property
    def region(self) -> Region:
        """The memory that other processes may write."""

    def view(self, layer: int, block: int) -> memoryview:
        """Return the bytes `[k, v][kv_head][token][head_dim]` of one layer of a block.

        For a cache in the memory of a device these are the bytes of its host copy.
        """


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """Some blocks of a cache, in the order of their sequence."""

    cache: KvCache
    ids: Sequence[int]

    def views(self, layer: int) -> list[memoryview]:
        """Return the bytes of one layer of each block. Raises IndexError for no layer of it."""
        if not 0 <= layer < self.cache.layout.layers:
            raise IndexError(f"layer {layer}: outside of the cache")
        return [self.cache.view(layer, block) for block in self.ids]

    def part(self, start: int, stop: int) -> KvBlocks:
        """Return the blocks from `start` up to `stop`, counted in these."""
        return KvBlocks(self.cache, self.ids[start:stop])
