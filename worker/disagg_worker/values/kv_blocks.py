"""PURE: Blocks of a KV cache as those see them who move KV: by number, in a region of memory.

The region may be that of a device, which no memoryview shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
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
    """The cache of one worker.

    The bytes of a block's layer are `[k, v][kv_head][token][head_dim]`. Those of several blocks
    follow one another, in as many views as the cache likes, which are good while the context lasts.
    Any thread may move KV; it waits for memory and copies if the cache is that of a device.
    """

    layout: KvLayout

    @property
    def region(self) -> Region | None:
        """The memory that other processes may write; None if there is none with all heads."""

    def view(self, layer: int, block: int) -> memoryview:
        """Return the bytes of one layer of a block, of a cache in ordinary memory or its copy."""

    def reading(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        """Give the bytes of one layer of these blocks, which is computed. Raises TimeoutError."""

    def writing(self, layer: int, ids: Sequence[int]) -> AbstractContextManager[Sequence[memoryview]]:
        """Give room for the bytes of one layer of these blocks. They are in the cache when the
        context has ended well; what comes after it sees them. Raises TimeoutError.
        """


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """Some blocks of a cache, in the order of their sequence."""

    cache: KvCache
    ids: Sequence[int]

    def reading(self, layer: int) -> AbstractContextManager[Sequence[memoryview]]:
        """Give the bytes of one layer (KvCache.reading). Raises IndexError for no layer of it."""
        self._check(layer)
        return self.cache.reading(layer, self.ids)

    def writing(self, layer: int) -> AbstractContextManager[Sequence[memoryview]]:
        """Give room for the bytes of one layer (KvCache.writing). Raises IndexError for no layer of
        it.
        """
        self._check(layer)
        return self.cache.writing(layer, self.ids)

    def views(self, layer: int) -> list[memoryview]:
        """Return the bytes of one layer of each block, of a cache in ordinary memory."""
        self._check(layer)
        return [self.cache.view(layer, block) for block in self.ids]

    def _check(self, layer: int) -> None:
        if not 0 <= layer < self.cache.layout.layers:
            raise IndexError(f"layer {layer}: outside of the cache")

    def part(self, start: int, stop: int) -> KvBlocks:
        """Return the blocks from `start` up to `stop`, counted in these."""
        return KvBlocks(self.cache, self.ids[start:stop])
