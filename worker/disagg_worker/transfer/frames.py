"""PURE: The frames of a KV transfer (docs/protocol.md, "KV transfer over TCP").

Every length is checked before anything is allocated for it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"DKV1"
MAGIC_2 = b"DKV2"
MAX_PAYLOAD_BYTES = 64 << 20
MAX_CONTROL_BYTES = 64 << 10
_HEAD = struct.Struct("<4sBBHIIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEAD.size + _CRC.size
# A frame of version 2 has no CRC in its header, and a tag behind its payload.
HEADER_2_BYTES = _HEAD.size
TAG_BYTES = 16


class FrameError(ValueError):
    """Raised when received bytes are not a frame of this protocol or were damaged on the way."""


class FrameType(IntEnum):
    CHALLENGE = 1
    BEGIN = 2
    LAYER = 3
    PROGRESS = 4
    COMMIT = 5
    ACK = 6
    ERROR = 7
    END = 8
    """This and the following ones are of version 2 only."""
    WRITES = 9
    READY = 10
    WRITTEN = 11
    RELEASED = 12


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a frame."""

    type: FrameType
    layer: int = 0
    """The layer of a LAYER frame."""
    seq: int = 0
    """The number of a LAYER frame in its transfer, from 0."""
    first_block: int = 0
    """The first block of a LAYER frame, counted in the sequence from 0."""
    n_blocks: int = 0
    """The number of blocks of a LAYER frame."""
    length_bytes: int = 0
    """The bytes of the payload."""
    crc32: int = 0
    """The CRC-32 of the header without this field, and the payload."""


def encode_header(header: Header, payload: Sequence[bytes | memoryview]) -> tuple[bytes, int]:
    """Return the bytes of a header and the CRC.

    `header.length_bytes` and `crc32` are ignored and computed from the parts of the payload. Raises
    FrameError if the payload is too long.
    """
    length = sum(len(part) for part in payload)
    if length > MAX_PAYLOAD_BYTES:
        raise FrameError(f"payload of {length} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    head = _HEAD.pack(MAGIC, header.type, 0, header.layer, header.seq, header.first_block, header.n_blocks, length)
    crc = zlib.crc32(head)
    for part in payload:
        crc = zlib.crc32(part, crc)
    return head + _CRC.pack(crc), crc


def decode_header(raw: bytes) -> Header:
    """Parse a header of HEADER_BYTES bytes.

    Raises FrameError for another magic, unknown flags, an unknown type, or a length over the limit.
    """
    (crc,) = _CRC.unpack_from(raw, _HEAD.size)
    return _decode(raw, MAGIC, 1, crc)


def decode_header_2(raw: bytes) -> Header:
    """Parse a header of HEADER_2_BYTES bytes, like `decode_header`."""
    return _decode(raw, MAGIC_2, 2, 0)


def encode_header_2(header: Header, length_bytes: int) -> bytes:
    """Return the bytes of a header of version 2. Raises FrameError if the payload is too long."""
    if length_bytes > MAX_PAYLOAD_BYTES:
        raise FrameError(f"payload of {length_bytes} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
    numbers = (header.layer, header.seq, header.first_block, header.n_blocks, length_bytes)
    return _HEAD.pack(MAGIC_2, header.type, 0, *numbers)


def _decode(raw: bytes, expected: bytes, version: int, crc: int) -> Header:
    magic, kind, flags, layer, seq, first_block, n_blocks, length = _HEAD.unpack_from(raw)
    if magic != expected:
        raise FrameError(f"not a KV transfer of version {version} (magic {magic!r})")
    if flags:
        raise FrameError(f"unknown flags {flags:#x}")
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise FrameError(f"unknown frame type {kind}") from None
    limit = MAX_PAYLOAD_BYTES if frame_type is FrameType.LAYER else MAX_CONTROL_BYTES
    if length > limit:
        raise FrameError(f"{frame_type.name} of {length} bytes is over the limit of {limit}")
    return Header(frame_type, layer, seq, first_block, n_blocks, length, crc)


def check_crc(raw_header: bytes, payload: Sequence[bytes | memoryview], expected: int) -> None:
    """Raise FrameError if the header or the payload changed on the way."""
    crc = zlib.crc32(raw_header[: _HEAD.size])
    for part in payload:
        crc = zlib.crc32(part, crc)
    if crc != expected:
        raise FrameError("checksum mismatch")
