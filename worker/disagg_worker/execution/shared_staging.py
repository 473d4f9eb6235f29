"""Buffers for KV that all ranks of a group share: each rank copies its heads into them or out of
them, when rank 0 says so.

Like those of one process they are few and used again, so the memory of what is on its way does not
grow with the cache.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from disagg_worker.execution.staging import Staging

# No frame of a transfer is larger. Of a buffer, only what was used takes memory.
BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Move:
    """A copy of one layer of some blocks between a buffer and the parts of all ranks."""

    arrives: bool
    """Whether it goes into the cache, and not out of it."""
    layer: int
    offset: int
    """The place of the buffer in the shared memory."""
    blocks: Sequence[int]

    def as_json(self) -> dict[str, Any]:
        return {
            "arrives": self.arrives,
            "layer": self.layer,
            "offset": self.offset,
            "blocks": [int(block) for block in self.blocks],
        }


def move_of(content: dict[str, Any]) -> Move:
    """Return the move that `as_json` has told, by rank 0."""
    return Move(content["arrives"], content["layer"], content["offset"], content["blocks"])


class SharedMemory:
    """A file in memory, as one rank maps it."""

    def __init__(self, fd: int, buffers: int) -> None:
        self._map = mmap.mmap(fd, buffers * BUFFER_BYTES)
        self._raw = torch.frombuffer(self._map, dtype=torch.uint8)
        self._locked: dict[int, int] = {}

    def at(self, offset: int, size_bytes: int) -> torch.Tensor:
        return self._raw[offset : offset + size_bytes]

    def offset(self, part: torch.Tensor) -> int:
        return part.data_ptr() - self._raw.data_ptr()

    def lock(self, part: torch.Tensor) -> None:
        """Let a GPU copy to and from a part of a buffer without a copy in between.

        Pages are locked that were used, and once. Where it is refused, the copies are slower.
        """
        offset, size = self.offset(part), len(part)
        cuda: Any = torch.cuda  # torch has no types for it.
        runtime = cuda.cudart()
        if size <= self._locked.get(offset, 0):
            return
        if offset in self._locked:
            runtime.cudaHostUnregister(part.data_ptr())
        runtime.cudaHostRegister(part.data_ptr(), size, 0)
        self._locked[offset] = size


class SharedStaging(Staging):
    """The buffers of a group, which rank 0 gives out."""

    def __init__(self, memory_fd: int, buffers: int, timeout_s: float) -> None:
        super().__init__(buffers, timeout_s, pinned=False)
        self._fd = memory_fd
        self.memory = SharedMemory(memory_fd, buffers)
        self._free = [self.memory.at(n * BUFFER_BYTES, BUFFER_BYTES) for n in range(buffers)]

    @property
    def held_bytes(self) -> int:
        return os.fstat(self._fd).st_blocks * 512

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[torch.Tensor]:
        if size_bytes > BUFFER_BYTES:
            raise ValueError(f"{size_bytes} bytes of KV are more than a frame may have")
        with super().take(size_bytes) as buffer:
            yield buffer
