"""The page of memory in which a process writes how far it has come, for the process that tells it.

One thread writes the steps and one the loop, and each write costs about a microsecond. A reader
that meets a write in the middle reads again.
"""

from __future__ import annotations

import mmap
import os
import struct
import time

from disagg_wire.pulse import Beat

# The number of writes, which is odd during one; steps begun; when the step that runs began (0: none
# runs) and how long it may take; when the loop was last heard of. Times are monotonic, which all
# processes of a machine share.
_STEP = struct.Struct("=Qdd")
_COUNT = struct.Struct("=Q")
_LOOP = struct.Struct("=d")
# When the reader was last heard of, which another process writes.
_READER = struct.Struct("=d")
_STEP_AT, _LOOP_AT, _READER_AT, _SIZE = 8, 32, 40, 64
_READS = 100


class PulseBoard:
    """The page. `fd` is its descriptor, by which another process can open it."""

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("pulse", 0) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
        self._page = mmap.mmap(self.fd, _SIZE)
        self._writes = 0
        self._steps = 0

    def begins(self, expected_s: float) -> None:
        """Note that a step begins that may take `expected_s` seconds."""
        self._steps += 1
        self._step(time.monotonic(), expected_s)

    def ends(self) -> None:
        """Note that no step runs."""
        self._step(0.0, 0.0)

    def _step(self, began_s: float, expected_s: float) -> None:
        self._writes += 2
        _COUNT.pack_into(self._page, 0, self._writes - 1)
        _STEP.pack_into(self._page, _STEP_AT, self._steps, began_s, expected_s)
        _COUNT.pack_into(self._page, 0, self._writes)

    def loop_runs(self) -> None:
        """Note that the event loop runs."""
        _LOOP.pack_into(self._page, _LOOP_AT, time.monotonic())

    def reader_runs(self) -> None:
        """Note that the process that reads runs."""
        _READER.pack_into(self._page, _READER_AT, time.monotonic())

    def reader_silent_s(self) -> float:
        """Return how long ago it was last heard of."""
        return max(0.0, time.monotonic() - float(_READER.unpack_from(self._page, _READER_AT)[0]))

    def beat(self) -> Beat:
        """Return what is written now."""
        for _ in range(_READS):
            before = _COUNT.unpack_from(self._page, 0)[0]
            steps, began_s, expected_s = _STEP.unpack_from(self._page, _STEP_AT)
            if before % 2 == 0 and before == _COUNT.unpack_from(self._page, 0)[0]:
                break
        now_s, loop_s = time.monotonic(), _LOOP.unpack_from(self._page, _LOOP_AT)[0]
        step_s = max(0.0, now_s - began_s) if began_s else None
        return Beat(steps, step_s, expected_s, max(0.0, now_s - loop_s) if loop_s else 0.0)
