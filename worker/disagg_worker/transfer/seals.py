"""The tags of frames of version 2: AES-GMAC with the session key, or CRC-32C.

A tag is computed piece by piece, so that each piece is checked while it is in the processor's cache
and while the network moves the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import crc32c
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from disagg_wire.integrity import CRC32C
from disagg_worker.transfer.frames import TAG_BYTES, FrameType

CRC32C_IN_HARDWARE: bool = crc32c.hardware_based


class Seal(Protocol):
    """The tag of one frame, while it is computed."""

    def update(self, part: bytes | memoryview) -> None: ...

    def tag(self) -> bytes:
        """Return the TAG_BYTES bytes of the tag, once."""


class _Gmac:
    """AES-GCM with nothing encrypted."""

    def __init__(self, algorithm: algorithms.AES, number: int) -> None:
        self._context = Cipher(algorithm, modes.GCM(number.to_bytes(12, "big"))).encryptor()
        self.update = self._context.authenticate_additional_data

    def tag(self) -> bytes:
        self._context.finalize()
        return self._context.tag


class _Crc32c:
    def __init__(self) -> None:
        self._crc = 0

    def update(self, part: bytes | memoryview) -> None:
        self._crc = crc32c.crc32c(part, self._crc)

    def tag(self) -> bytes:
        return self._crc.to_bytes(4, "little").ljust(TAG_BYTES, b"\0")


def block_tag(key: bytes, integrity: str, number: int, parts: Iterable[memoryview]) -> bytes:
    """Return the tag of a whole block, which has the number `number` in its sequence.

    A key is used for each number once.
    """
    seal: Seal = _Crc32c() if integrity == CRC32C else _Gmac(algorithms.AES(key), number)
    for part in parts:
        seal.update(part)
    return seal.tag()


class Sealer:
    """The tags of the frames of one direction of one connection.

    Every frame has a number, which is the nonce of its tag, so none can be repeated or moved. Only
    LAYER frames may have a CRC: what a transfer means is authenticated always.
    """

    def __init__(self, key: bytes, integrity: str) -> None:
        self._algorithm = algorithms.AES(key)
        self._crc = integrity == CRC32C
        self._number = 0

    @property
    def number(self) -> int:
        """The number of the next frame."""
        return self._number

    def next(self, kind: FrameType) -> Seal:
        """Begin the tag of the next frame."""
        number = self._number
        self._number += 1
        return _Crc32c() if self._crc and kind is FrameType.LAYER else _Gmac(self._algorithm, number)
