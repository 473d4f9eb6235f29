"""Tests of the manifest: a transfer counts only if each part of each layer came exactly once and
the commit says the same.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.events import TokenEvent
from disagg_protocol.ticket import Ticket, token_hash
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.manifest import Coverage, Digest, combined, commit_payload, verify_commit
from disagg_worker.values.layouts import KvLayout

LAYOUT = KvLayout(layers=2, kv_heads=1, head_dim=2, block_size_tokens=2, dtype="float32", itemsize_bytes=4)
TOKENS = [5, 6, 7, 8, 9]
BLOCKS = 3
TICKET = Ticket("ab" * 16, "r", 0, "c", "d/e", "127.0.0.1", 9, len(TOKENS), token_hash(TOKENS), 30.0)
FIRST = TokenEvent(0, 4)


def layer(seq: int, layer: int, first: int, n: int, length: int | None = None) -> Header:
    length = n * LAYOUT.layer_block_bytes if length is None else length
    return Header(FrameType.LAYER, layer, seq, first, n, length, crc32=17 * seq + layer)


def whole() -> Coverage:
    coverage = Coverage(LAYOUT, BLOCKS)
    for seq in range(LAYOUT.layers):
        header = layer(seq, seq, 0, BLOCKS)
        coverage.check(header)
        coverage.take(header)
    return coverage


@given(st.permutations([(lay, block) for lay in range(LAYOUT.layers) for block in range(BLOCKS)]))
def test_parts_may_come_in_any_order_and_all_are_needed(parts: list[tuple[int, int]]) -> None:
    coverage = Coverage(LAYOUT, BLOCKS)
    for seq, (lay, block) in enumerate(parts):
        assert not coverage.complete
        header = layer(seq, lay, block, 1)
        coverage.check(header)
        coverage.take(header)
    assert coverage.complete


def test_a_place_that_is_claimed_is_for_no_other_connection() -> None:
    coverage = Coverage(LAYOUT, BLOCKS)
    coverage.claim(layer(0, 0, 0, 2))
    with pytest.raises(FrameError, match="twice"):
        coverage.claim(layer(0, 0, 1, 1))
    coverage.claim(layer(0, 0, 2, 1))


def test_the_digest_of_several_connections_is_that_of_their_digests_in_order() -> None:
    one, two = Digest(), Digest()
    one.add(1, 10)
    one.add(2, 10)
    two.add(3, 5)
    whole_ = combined({1: two, 0: one})
    assert (whole_.frames, whole_.payload_bytes) == (3, 25)
    assert whole_.hex() == combined({0: one, 1: two}).hex() != combined({0: two, 1: one}).hex()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (layer(2, 0, 0, 1), "twice"),
        (layer(2, 1, 1, 2), "twice"),
        (layer(1, 0, 0, 1), "was due"),
        (layer(3, 0, 0, 1), "was due"),
        (layer(2, 2, 0, 1), "layer 2 of 2"),
        (layer(2, 0, 3, 1), "blocks"),
        (layer(2, 0, 0, 4), "blocks"),
        (layer(2, 0, 2**32 - 1, 1), "blocks"),
        (layer(2, 0, 0, 0), "blocks"),
        (layer(2, 0, 0, 1, length=1), "bytes"),
        (layer(2, 0, 0, 1, length=0), "bytes"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused_before_it_is_written(header: Header, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        whole().check(header)


def test_a_whole_transfer_gives_the_first_token() -> None:
    coverage = whole()
    payload = commit_payload(coverage.digest, len(TOKENS), token_hash(TOKENS), FIRST)
    assert verify_commit(payload, coverage, TICKET, vocab_size=16) == FIRST.token


@pytest.mark.parametrize(
    "change",
    [
        {"frames": 3},
        {"bytes": 0},
        {"digest": "00"},
        {"token_hash": token_hash([1])},
        {"tokens": 4},
        {"first_token": 16},
        {"first_token": -1},
        {"first_token": True},
        {"first_token": "4"},
        {"first_token": None},
        {"digest": None},
        {"frames": "2"},
    ],
)
def test_a_commit_that_does_not_hold_names_what_is_wrong(change: dict[str, Any]) -> None:
    coverage = whole()
    payload = commit_payload(coverage.digest, len(TOKENS), token_hash(TOKENS), FIRST) | change
    with pytest.raises(FrameError, match=rf"commit\.{next(iter(change))}"):
        verify_commit(payload, coverage, TICKET, vocab_size=16)


def test_a_commit_before_the_last_part_is_refused() -> None:
    coverage = Coverage(LAYOUT, BLOCKS)
    coverage.take(layer(0, 0, 0, BLOCKS))
    payload = commit_payload(coverage.digest, len(TOKENS), token_hash(TOKENS), FIRST)
    with pytest.raises(FrameError, match="never arrived"):
        verify_commit(payload, coverage, TICKET, vocab_size=16)


def test_a_commit_that_is_no_object_is_refused() -> None:
    with pytest.raises(FrameError, match="object"):
        verify_commit([], whole(), TICKET, vocab_size=16)


def test_what_decode_holds_must_not_arrive_and_all_else_must() -> None:
    coverage = Coverage(LAYOUT, BLOCKS, held_blocks=2)
    for first, n in ((0, 1), (1, 2), (0, 3)):
        with pytest.raises(FrameError, match="are there already"):
            coverage.claim(layer(0, 0, first, n))
    for lay in range(LAYOUT.layers):
        assert not coverage.complete
        header = layer(lay, lay, 2, 1)
        coverage.check(header)
        coverage.take(header)
    assert coverage.complete
