"""Tests of blocks by number, whose bytes a cache shows."""

from __future__ import annotations

import pytest
from tests.fakes.kv_memory import KvMemory

from disagg_worker.values.kv_blocks import KvBlocks, Region
from disagg_worker.values.layouts import KvLayout


def cache() -> KvMemory:
    """Return a cache of ten blocks with three layers of two bytes."""
    layout = KvLayout(layers=3, kv_heads=1, head_dim=1, block_size_tokens=1, dtype="uint8", itemsize_bytes=1)
    return KvMemory(layout, 10)


def test_what_is_written_is_read_in_the_order_of_the_sequence() -> None:
    blocks = KvBlocks(cache(), [7, 2, 5])
    with blocks.writing(1) as views:
        for i, view in enumerate(views):
            view[:] = bytes([i, i + 10])
    with blocks.reading(1) as views:
        assert b"".join(views) == bytes([0, 10, 1, 11, 2, 12])
    with blocks.part(1, 3).reading(1) as views:
        assert b"".join(views) == bytes([1, 11, 2, 12])
    with blocks.reading(0) as views:
        assert not any(b"".join(views))


@pytest.mark.parametrize("layer", [-1, 3])
def test_there_is_nothing_outside_of_the_layers(layer: int) -> None:
    blocks = KvBlocks(cache(), [0])
    with pytest.raises(IndexError):
        blocks.reading(layer)
    with pytest.raises(IndexError):
        blocks.writing(layer)


def test_a_block_is_one_piece_of_its_region() -> None:
    assert Region(1000, 64, 10).piece(3) == (1192, 64, 0)
    assert Region(1000, 64, 10, 2).piece(0) == (1000, 64, 2)


def test_blocks_have_the_views_of_their_cache_in_order() -> None:
    memory = cache()
    memory.bytes[:] = bytes(range(60))
    blocks = KvBlocks(memory, (2, 0, 1))
    assert blocks.views(1) == [memory.view(1, block) for block in (2, 0, 1)]
    assert blocks.part(1, 9) == KvBlocks(memory, (0, 1))
    for layer in (-1, 3):
        with pytest.raises(IndexError, match="outside of the cache"):
            blocks.views(layer)
