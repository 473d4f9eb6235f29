"""Tests of blocks by number: their place in a region, and their views."""

from __future__ import annotations

import pytest
from tests.worker.transfer.rig import LAYOUT, Memory

from disagg_worker.values.kv_blocks import KvBlocks, Region


def test_a_block_is_one_piece_of_its_region() -> None:
    assert Region(1000, 64, 10).piece(3) == (1192, 64, 0)
    assert Region(1000, 64, 10, 2).piece(0) == (1000, 64, 2)


def test_blocks_have_the_views_of_their_cache_in_order() -> None:
    memory = Memory(fill=bytes(range(251)))
    blocks = KvBlocks(memory, (2, 0, 1))
    assert blocks.views(1) == [memory.layer_view(1, block) for block in (2, 0, 1)]
    assert blocks.part(1, 9) == KvBlocks(memory, (0, 1))
    for layer in (-1, LAYOUT.layers):
        with pytest.raises(IndexError, match="outside of the cache"):
            blocks.views(layer)
