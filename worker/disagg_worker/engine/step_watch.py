"""The engine's announcements: before each step, how long it may take.

They go to a record that another process reads, so that a step that never ends is seen.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from disagg_worker.engine.step_length import ALLOWANCE, StepLengths, prefill_size


class StepRecord(Protocol):
    """A place for announcements. Its methods must not block."""

    def begins(self, expected_s: float) -> None: ...
    def ends(self) -> None: ...


class StepWatch:
    """Announces steps, on the engine's thread, and tells any thread whether one is late.

    `compiles` says that the first step of a size may compile kernels.
    """

    def __init__(self, record: StepRecord | None = None, *, compiles: bool = True) -> None:
        self._record = record
        self._lengths = StepLengths(compiles=compiles)
        self._running: tuple[float, float] | None = None  # when it began, and how long it may take
        self._turned_s = time.monotonic()

    def prefill(self, work: Sequence[tuple[int, int]]) -> contextlib.AbstractContextManager[None]:
        """Announce a batch of (tokens, tokens in front of them)."""
        return self._step("prefill", prefill_size(work))

    def decode(self, sequences: int) -> contextlib.AbstractContextManager[None]:
        """Announce a step of so many sequences."""
        return self._step("decode", sequences)

    @contextlib.contextmanager
    def _step(self, kind: str, size: float) -> Iterator[None]:
        expected_s, began_s = self._lengths.expected_s(kind, size), time.monotonic()
        self._running = began_s, expected_s
        if self._record is not None:
            self._record.begins(expected_s)
        try:
            yield
        finally:
            self._running = None
            self._lengths.note(kind, size, time.monotonic() - began_s)
            if self._record is not None:
                self._record.ends()

    def turned(self) -> None:
        """Note that the loop has come round."""
        self._turned_s = time.monotonic()

    def silent_s(self) -> float:
        """Return how long ago the loop last came round."""
        return time.monotonic() - self._turned_s

    def is_late(self, by_s: float) -> bool:
        """Return whether a step takes that much longer than it may."""
        running = self._running
        if running is None:
            return False
        began_s, expected_s = running
        return time.monotonic() - began_s > ALLOWANCE * expected_s + by_s
