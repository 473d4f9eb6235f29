"""Tests of frames: a frame arrives as it was sent or is refused, and its length is checked before
anything is allocated.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.transfer.frames import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameError,
    FrameType,
    Header,
    check_crc,
    decode_header,
    decode_header_2,
    encode_header,
    encode_header_2,
)

U16, U32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)


@given(st.sampled_from(FrameType), U16, U32, U32, U32, st.lists(st.binary(max_size=100), max_size=4))
def test_a_frame_is_read_back_as_it_was(
    kind: FrameType, layer: int, seq: int, first: int, n: int, parts: list[bytes]
) -> None:
    raw, crc = encode_header(Header(kind, layer, seq, first, n), parts)
    assert len(raw) == HEADER_BYTES
    assert decode_header(raw) == Header(kind, layer, seq, first, n, sum(map(len, parts)), crc)
    check_crc(raw, [b"".join(parts)], crc)


@given(st.sampled_from(FrameType), U16, U32, U32, U32, st.integers(0, MAX_CONTROL_BYTES))
def test_a_header_of_version_2_is_read_back_as_it_was(
    kind: FrameType, layer: int, seq: int, first: int, n: int, length: int
) -> None:
    raw = encode_header_2(Header(kind, layer, seq, first, n), length)
    assert decode_header_2(raw) == Header(kind, layer, seq, first, n, length)
    with pytest.raises(FrameError):
        decode_header(raw + bytes(HEADER_BYTES - len(raw)))


def test_a_payload_over_the_limit_has_no_header() -> None:
    with pytest.raises(FrameError, match="over the limit"):
        encode_header_2(Header(FrameType.LAYER), MAX_PAYLOAD_BYTES + 1)


def _read(sent: bytes) -> None:
    header = decode_header(sent[:HEADER_BYTES])
    check_crc(sent[:HEADER_BYTES], [sent[HEADER_BYTES:]], header.crc32)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_flipped_bit_anywhere_is_noticed(payload: bytes, data: st.DataObject) -> None:
    raw, _ = encode_header(Header(FrameType.LAYER, 1, 2, 3, 4), [payload])
    sent = bytearray(raw + payload)
    bit = data.draw(st.integers(0, 8 * len(sent) - 1))
    sent[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FrameError):
        _read(bytes(sent))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (struct.pack("<4sBBHIIIII", b"DKV2", 3, 0, 0, 0, 0, 0, 0, 0), "version 1"),
        (struct.pack("<4sBBHIIIII", b"GET ", 3, 0, 0, 0, 0, 0, 0, 0), "version 1"),
        (struct.pack("<4sBBHIIIII", b"DKV1", 99, 0, 0, 0, 0, 0, 0, 0), "type 99"),
        (struct.pack("<4sBBHIIIII", b"DKV1", 3, 1, 0, 0, 0, 0, 0, 0), "flags"),
        (struct.pack("<4sBBHIIIII", b"DKV1", FrameType.LAYER, 0, 0, 0, 0, 0, MAX_PAYLOAD_BYTES + 1, 0), "limit"),
        (struct.pack("<4sBBHIIIII", b"DKV1", FrameType.BEGIN, 0, 0, 0, 0, 0, MAX_CONTROL_BYTES + 1, 0), "limit"),
        (struct.pack("<4sBBHIIIII", b"DKV1", FrameType.PROGRESS, 0, 0, 0, 0, 0, 2**32 - 1, 0), "limit"),
    ],
)
def test_what_is_not_ours_is_refused_by_its_header(raw: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        decode_header(raw)


def test_nothing_over_the_limit_is_sent_either() -> None:
    with pytest.raises(FrameError, match="limit"):
        encode_header(Header(FrameType.LAYER), [memoryview(bytearray(MAX_PAYLOAD_BYTES)), b"x"])


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_random_bytes_give_a_header_or_a_refusal(raw: bytes) -> None:
    try:
        header = decode_header(raw)
    except FrameError:
        return
    assert header.length_bytes <= MAX_PAYLOAD_BYTES
