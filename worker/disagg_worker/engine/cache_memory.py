"""The KV cache's memory: one tensor, block-major, and byte views of it for the transfer (zero-copy)."""

from __future__ import annotations

import torch

from disagg_worker.engine.api import KvLayout


class CacheMemory:
    """`tensor` is [block, layer, 2, kv_head, token in block, head_dim]; all layers of a block are contiguous."""

    def __init__(self, layout: KvLayout, blocks: int, dtype: torch.dtype) -> None:
        self.layout = layout
        shape = (blocks, layout.layers, 2, layout.kv_heads, layout.block_size_tokens, layout.head_dim)
        self.tensor = torch.zeros(shape, dtype=dtype)
        self._bytes = self.tensor.view(-1).view(torch.uint8).numpy().data

    def view(self, layer: int, block: int) -> memoryview:
        """The contiguous bytes `[k, v][kv_head][token][head_dim]` of one layer of one block."""
        size = self.layout.layer_block_bytes
        start = (block * self.layout.layers + layer) * size
        return self._bytes[start : start + size]

    def read(self, block: int) -> bytes:
        """A copy of all layers of a block."""
        size = self.layout.layer_block_bytes * self.layout.layers
        return bytes(self._bytes[block * size : (block + 1) * size])

    def write(self, block: int, content: bytes) -> None:
        """Put back what `read` gave."""
        size = self.layout.layer_block_bytes * self.layout.layers
        self._bytes[block * size : (block + 1) * size] = content

    def clear(self, blocks: list[int]) -> None:
        """Zero all layers of these blocks."""
        if blocks:
            self.tensor[torch.tensor(blocks)] = 0
