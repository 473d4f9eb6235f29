"""Times what the operator has promised to do in time.

They count only on a machine that does nothing else. On another one they are noted, and nothing is
asserted of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

BUSY = os.getloadavg()[0] > 1.0
"""Whether the machine had other work when the tests began."""
# What takes longer never happens.
NEVER_S = 60.0


class Stopwatch:
    """Notes how long each thing takes, in the page of the long form.

    `record` is pytest's `record_property`.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._late: list[str] = []

    @contextlib.contextmanager
    def within(self, limit_s: float, what: str) -> Iterator[None]:
        """Time the block, which should take less than `limit_s`."""
        begun_s = time.monotonic()
        yield
        took_s = time.monotonic() - begun_s
        self._record(what, f"{took_s:.1f} s of {limit_s:g} s{' on a machine with other work' if BUSY else ''}")
        if took_s >= limit_s:
            self._late.append(f"{what}: {took_s:.1f} s of {limit_s:g} s")

    def check(self) -> None:
        """Fail if anything took too long, on a machine without other work."""
        assert BUSY or not self._late, self._late
