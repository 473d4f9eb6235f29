"""Buffers in host memory through which KV goes to a device and comes from it.

Their number is fixed and each is used again, so what is on its way takes the same memory however
large the cache is, and page-locked memory, which is slow to get, is got once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Staging:
    """A number of buffers. Each grows to the largest frame that it has held.

    Whoever finds none free waits for at most `timeout_s`. Any thread may take one, but nobody takes
    a second one while holding one.
    """

    def __init__(self, buffers: int, timeout_s: float, *, pinned: bool) -> None:
        self._timeout_s = timeout_s
        self._pinned = pinned
        self._returned = threading.Condition()
        # The largest are taken first, so that a small number of them does most of the work.
        self._free: list[torch.Tensor | None] = [None] * buffers
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """The memory of all buffers."""
        return self._held_bytes

    @contextmanager
    def take(self, size_bytes: int) -> Iterator[torch.Tensor]:
        """Yield the first `size_bytes` bytes of a buffer. Raises TimeoutError."""
        with self._returned:
            if not self._returned.wait_for(lambda: self._free, self._timeout_s):
                raise TimeoutError(f"no buffer for KV became free within {self._timeout_s:g} s")
            buffer = self._free.pop()
        try:
            if buffer is None or len(buffer) < size_bytes:
                buffer = self._grown(buffer, size_bytes)
            yield buffer[:size_bytes]
        finally:
            with self._returned:
                self._free.append(buffer)
                self._returned.notify()

    def _grown(self, buffer: torch.Tensor | None, size_bytes: int) -> torch.Tensor:
        grown = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        with self._returned:
            self._held_bytes += size_bytes - (0 if buffer is None else len(buffer))
        return grown
