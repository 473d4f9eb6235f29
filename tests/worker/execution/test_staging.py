"""Tests of the buffers between a device and the network, with a cache on the CPU in its place: what
is sent and received is the cache's, and the memory for it does not grow with the cache.
"""

from __future__ import annotations

import threading

import pytest
import torch

from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.execution.staging import Staging
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout

LAYOUT = KvLayout(3, 2, 4, 8, "float32", 4)
BLOCKS = 50


def _caches() -> tuple[CacheMemory, CacheMemory, Staging]:
    """Return a cache in ordinary memory, and one that is reached through buffers, as one of a
    device is.
    """
    staging = Staging(2, 0.05, pinned=False)
    return (
        CacheMemory(LAYOUT, BLOCKS, torch.float32),
        CacheMemory(LAYOUT, BLOCKS, torch.float32, staging=staging),
        staging,
    )


def _copy(source: KvBlocks, target: KvBlocks, layer: int) -> None:
    with source.reading(layer) as theirs, target.writing(layer) as ours:
        content = memoryview(b"".join(theirs))
        for view in ours:
            view[:], content = content[: len(view)], content[len(view) :]
        assert not content


def test_kv_goes_through_the_buffers_and_back_bit_by_bit() -> None:
    plain, staged, _ = _caches()
    plain.tensor.copy_(torch.randn(plain.tensor.shape))
    there, back = [7, 3, 4, 20], [9, 8, 1, 2]
    for layer in range(LAYOUT.layers):
        _copy(KvBlocks(plain, there), KvBlocks(staged, there), layer)
    assert torch.equal(staged.tensor[there], plain.tensor[there])
    assert int(staged.tensor.count_nonzero()) == plain.tensor[there].numel()
    for layer in range(LAYOUT.layers):
        _copy(KvBlocks(staged, there), KvBlocks(plain, back), layer)
    assert torch.equal(plain.tensor[back], staged.tensor[there])


def test_what_arrives_damaged_never_gets_into_the_cache() -> None:
    _, staged, _ = _caches()

    def receive() -> None:
        with KvBlocks(staged, [1, 2]).writing(0) as views:
            views[0][:] = b"\x01" * len(views[0])
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        receive()
    assert not staged.tensor.any()


def test_the_buffers_are_used_again_however_much_is_moved() -> None:
    plain, staged, staging = _caches()
    for _ in range(20):
        for first in range(0, BLOCKS, 10):
            ids = range(first, first + 10)
            _copy(KvBlocks(plain, ids), KvBlocks(staged, ids), 1)
    assert staging.held_bytes == 10 * LAYOUT.layer_block_bytes
    _copy(KvBlocks(plain, [0]), KvBlocks(staged, [0]), 1)
    assert staging.held_bytes == 10 * LAYOUT.layer_block_bytes


def test_who_finds_no_buffer_waits_for_one_and_not_for_ever() -> None:
    staging = Staging(1, 0.05, pinned=False)
    with staging.take(10) as first, pytest.raises(TimeoutError, match="no buffer"), staging.take(10):
        raise AssertionError(first)
    patient, taken = Staging(1, 30.0, pinned=False), threading.Event()

    def wait() -> None:
        with patient.take(5):
            taken.set()

    with patient.take(10):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not taken.is_set()
    thread.join(30)
    assert taken.is_set()
    assert patient.held_bytes == 10
