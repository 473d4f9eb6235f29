"""The byte views that the transfer reads and writes are the cache itself."""

from __future__ import annotations

import pytest
import torch

from disagg_worker.engine.api import KvLayout
from disagg_worker.engine.cache_memory import CacheMemory


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
