"""Tests of the queue of parts: layers are split, in order, and every taker sees the end."""

from __future__ import annotations

import threading

import pytest
from tests.fakes.kv_memory import KvMemory

from disagg_protocol.events import CANCELLED, TokenEvent
from disagg_worker.transfer.outbox import Commit, Outbox, Part
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout


def blocks(n: int) -> KvBlocks:
    """Return blocks that have ten bytes a layer."""
    layout = KvLayout(layers=9, kv_heads=1, head_dim=5, block_size_tokens=1, dtype="uint8", itemsize_bytes=1)
    return KvMemory(layout, n).blocks(0, n)


END = Commit(TokenEvent(0, 7), 1.0)


def test_layers_are_split_into_frames_and_come_in_order_before_the_end() -> None:
    box = Outbox(25)
    box.layer(1, 4, blocks(5))
    box.layer(2, 4, blocks(0))
    box.layer(2, 4, blocks(1))
    box.end(END)
    box.end(CANCELLED)
    box.layer(3, 0, blocks(1))
    assert box.waiting_bytes == 60
    parts = [box.next(0) for _ in range(4)]
    assert [(p.layer, p.first_block, len(p.blocks.ids), p.size_bytes) for p in parts if isinstance(p, Part)] == [
        (1, 4, 2, 20),
        (1, 6, 2, 20),
        (1, 8, 1, 10),
        (2, 4, 1, 10),
    ]
    assert box.waiting_bytes == 0
    assert [box.next(0), box.next(0)] == [END, END]


def test_a_block_larger_than_a_frame_goes_alone() -> None:
    box = Outbox(5)
    box.layer(0, 0, blocks(2))
    part = box.next(0)
    assert isinstance(part, Part)
    assert len(part.blocks.ids) == 1


def test_a_wait_ends_with_what_comes_or_with_its_timeout() -> None:
    box = Outbox(25)
    assert box.next(0.01) is None
    thread = threading.Thread(target=box.end, args=(CANCELLED,))
    thread.start()
    assert box.next(10) == CANCELLED
    thread.join()


def test_a_failure_comes_before_all_else_and_the_first_counts() -> None:
    box = Outbox(25)
    box.layer(0, 0, blocks(1))
    box.fail(ConnectionError("first"))
    box.fail(ConnectionError("second"))
    with pytest.raises(ConnectionError, match="first"):
        box.next(0)
    assert str(box.failure) == "first"
