"""Tests of the cache memory: its byte views, which the transfer reads and writes, are the cache
itself.
"""

from __future__ import annotations

import ctypes
import os

import pytest
import torch

from disagg_worker.execution.cache_memory import CacheMemory, HostCopy
from disagg_worker.values.layouts import KvLayout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_view_is_the_bytes_of_one_layer_of_one_block_without_a_copy(dtype: torch.dtype) -> None:
    layout = KvLayout(3, 2, 4, 8, str(dtype).removeprefix("torch."), dtype.itemsize)
    memory = CacheMemory(layout, 5, dtype)
    part = torch.randn(2, 2, 8, 4).to(dtype)
    view = memory.view(1, 3)
    assert len(view) == layout.layer_block_bytes == part.nbytes
    view[:] = part.view(-1).view(torch.uint8).numpy().tobytes()
    assert torch.equal(memory.tensor[3, 1], part)
    assert int(memory.tensor.count_nonzero()) == int(part.count_nonzero())
    memory.tensor[3, 1] = 0
    assert not any(view)


def test_all_views_together_are_the_whole_cache_in_order() -> None:
    memory = CacheMemory(KvLayout(2, 1, 4, 2, "float32", 4), 3, torch.float32)
    for block in range(3):
        for layer in range(2):
            memory.view(layer, block)[:] = bytes([block * 2 + layer]) * memory.layout.layer_block_bytes
    found = memory.tensor.view(-1).view(torch.uint8).reshape(6, -1)
    assert [row.unique().tolist() for row in found] == [[i] for i in range(6)]


def test_cleared_blocks_are_zero_and_the_others_untouched() -> None:
    memory = CacheMemory(KvLayout(2, 1, 4, 2, "float32", 4), 4, torch.float32)
    memory.tensor.fill_(1.0)
    memory.clear([1, 3])
    memory.clear([])
    assert [float(memory.tensor[b].sum()) for b in (1, 3)] == [0.0, 0.0]
    assert bool((memory.tensor[[0, 2]] == 1.0).all())


def _halves(dtype: torch.dtype) -> tuple[CacheMemory, list[CacheMemory]]:
    """Return a cache of 4 heads, and two caches that hold two each and share a host copy."""
    layout = KvLayout(3, 4, 4, 2, str(dtype).removeprefix("torch."), dtype.itemsize)
    fd = os.memfd_create("test")
    os.ftruncate(fd, 6 * layout.layers * layout.layer_block_bytes)
    host = HostCopy(layout, 6, dtype, fd)
    os.close(fd)
    return CacheMemory(layout, 6, dtype), [
        CacheMemory(layout, 6, dtype, None, heads, host) for heads in (slice(0, 2), slice(2, 4))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_parts_of_the_heads_make_the_bytes_of_the_whole_and_back(dtype: torch.dtype) -> None:
    whole, parts = _halves(dtype)
    whole.tensor.copy_(torch.randn(whole.tensor.shape).to(dtype))
    for part, heads in zip(parts, (slice(0, 2), slice(2, 4)), strict=True):
        part.tensor.copy_(whole.tensor[:, :, :, heads])
        for layer in range(3):
            assert part.export(layer, [1, 4]) is None
    for block in (1, 4):
        for layer in range(3):
            assert bytes(parts[0].view(layer, block)) == bytes(whole.view(layer, block))
    assert not any(parts[0].view(0, 2))  # Blocks that were not exported have not been copied.
    for part in parts:
        part.clear([1, 2, 4])
        part.load([1])
    rebuilt = torch.cat([p.tensor.view(torch.uint8) for p in parts], dim=3)
    assert torch.equal(rebuilt[1], whole.tensor.view(torch.uint8)[1])
    assert not rebuilt[4].any()


def test_the_region_is_where_the_views_lie() -> None:
    whole, parts = _halves(torch.bfloat16)
    for memory, is_cache in ((whole, True), (parts[1], False)):
        for layer in range(3):
            memory.view(layer, 2)[:] = bytes([7 + layer]) * memory.layout.layer_block_bytes
        assert memory.region is not None
        address, size_bytes, _ = memory.region.piece(2)
        views = b"".join(memory.view(layer, 2) for layer in range(3))
        assert ctypes.string_at(address, size_bytes) == views
        assert (memory.region.blocks, memory.region.device, memory.region_is_cache) == (6, None, is_cache)
        assert memory.computed() is None


def test_a_cache_without_a_host_copy_does_not_pretend_to_have_one() -> None:
    memory = CacheMemory(KvLayout(1, 4, 4, 2, "float32", 4), 2, torch.float32, heads=slice(0, 2))
    with pytest.raises(RuntimeError, match="no host copy"):
        memory.view(0, 0)
    assert memory.region is None
