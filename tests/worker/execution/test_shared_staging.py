"""Tests of the buffers that the ranks of a group share, with two ranks in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.execution.group_memory import GroupMemory
from disagg_worker.execution.shared_staging import BUFFER_BYTES, Move, SharedMemory, SharedStaging, move_of
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout

LAYOUT = KvLayout(3, 4, 4, 2, "bfloat16", 2)
BLOCKS, BUFFERS = 30, 2


@pytest.fixture
def fd() -> Iterator[int]:
    made = os.memfd_create("test")
    os.ftruncate(made, BUFFERS * BUFFER_BYTES)
    yield made
    os.close(made)


def _group(fd: int) -> tuple[GroupMemory, CacheMemory, list[Move]]:
    """Return a cache whose heads are divided among two ranks, the part of the other rank, and the
    moves so far.
    """
    moves: list[Move] = []
    other = CacheMemory(LAYOUT, BLOCKS, torch.bfloat16, None, slice(2, 4))
    theirs = SharedMemory(fd, BUFFERS)

    def begin(move: Move) -> Callable[[], None]:
        moves.append(move_of(move.as_json()))
        return lambda: other.move(theirs, moves[-1])

    staging = SharedStaging(fd, BUFFERS, 0.05)
    shape = LAYOUT, BLOCKS, torch.bfloat16, torch.device("cpu"), slice(0, 2)
    return GroupMemory(*shape, staging, begin), other, moves


def _copy(source: KvBlocks, target: KvBlocks, layer: int) -> None:
    with source.reading(layer) as theirs, target.writing(layer) as ours:
        content = memoryview(b"".join(theirs))
        for view in ours:
            view[:], content = content[: len(view)], content[len(view) :]
        assert not content


def test_all_heads_go_through_a_buffer_and_back_bit_by_bit(fd: int) -> None:
    plain = CacheMemory(LAYOUT, BLOCKS, torch.bfloat16)
    plain.tensor.copy_(torch.randn(plain.tensor.shape))
    group, other, moves = _group(fd)
    there, back = [7, 3, 4, 20], [9, 8, 1, 2]
    for layer in range(LAYOUT.layers):
        _copy(KvBlocks(plain, there), KvBlocks(group, there), layer)
    whole = torch.cat([group.tensor, other.tensor], dim=3)
    assert torch.equal(whole[there], plain.tensor[there])
    assert int(whole.count_nonzero()) == plain.tensor[there].numel()
    for layer in range(LAYOUT.layers):
        _copy(KvBlocks(group, there), KvBlocks(plain, back), layer)
    assert torch.equal(plain.tensor[back], whole[there])
    assert [m.arrives for m in moves] == [True] * 3 + [False] * 3
    # One layer of four blocks lies in one page, however much is moved.
    assert group.buffers.held_bytes <= 1 << 12


def test_what_arrives_damaged_never_gets_to_any_rank(fd: int) -> None:
    group, other, moves = _group(fd)

    def receive() -> None:
        with KvBlocks(group, [1, 2]).writing(0) as views:
            views[0][:] = b"\x01" * len(views[0])
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        receive()
    assert (moves, bool(group.tensor.any()), bool(other.tensor.any())) == ([], False, False)


def test_a_buffer_is_nobody_elses_before_all_ranks_are_done(fd: int) -> None:
    group, _, _ = _group(fd)
    waited: list[str] = []

    def begin(move: Move) -> Callable[[], None]:
        return lambda: waited.append(f"layer {move.layer}")

    group._begin = begin
    with pytest.raises(IndexError), group.writing(LAYOUT.layers, [0]):
        pass
    assert waited == [f"layer {LAYOUT.layers}"]


def test_two_transfers_have_different_buffers_and_a_third_waits(fd: int) -> None:
    group, _, moves = _group(fd)
    with group.reading(0, [1]), group.reading(0, [1]):
        assert sorted(m.offset for m in moves) == [0, BUFFER_BYTES]
        with pytest.raises(TimeoutError, match="no buffer"), group.reading(0, [1]):
            pass
    with pytest.raises(ValueError, match="more than a frame may have"), group.buffers.take(BUFFER_BYTES + 1):
        pass


def test_memory_for_a_gpu_is_locked_as_far_as_it_was_used(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    memory = SharedMemory(fd, BUFFERS)
    base = memory.at(0, 1).data_ptr()

    def runtime() -> SimpleNamespace:
        return SimpleNamespace(
            cudaHostRegister=lambda at, size, _: calls.append(("lock", at - base, size)),
            cudaHostUnregister=lambda at: calls.append(("unlock", at - base, 0)),
        )

    monkeypatch.setattr(torch.cuda, "cudart", runtime)
    cache = CacheMemory(LAYOUT, BLOCKS, torch.bfloat16, None, slice(0, 2))
    monkeypatch.setattr(cache, "_cuda", True)
    monkeypatch.setattr(cache, "_index", lambda ids: torch.tensor(list(ids)))
    size = LAYOUT.layer_block_bytes

    def move(offset: int, blocks: Sequence[int]) -> None:
        cache.move(memory, Move(True, 0, offset, blocks))

    move(BUFFER_BYTES, [1, 2])
    move(BUFFER_BYTES, [5])
    move(0, [1])
    move(BUFFER_BYTES, [1, 2, 3])
    assert calls == [
        ("lock", BUFFER_BYTES, 2 * size), ("lock", 0, size), ("unlock", BUFFER_BYTES, 0),
        ("lock", BUFFER_BYTES, 3 * size),
    ]  # fmt: skip
