"""The bound on everything that waits in this router, for room or for a model."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator


class Backlog:
    """The number of waiting requests, and their size, over all queues. It also numbers them."""

    def __init__(self, max_requests: int, max_bytes: float = math.inf) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._numbers = itertools.count()
        self.requests = 0
        self.size_bytes = 0

    def number(self) -> int:
        """Return a number for a request; later requests have greater ones."""
        return next(self._numbers)

    def has_room(self, size_bytes: int) -> bool:
        return self.requests < self._max_requests and self.size_bytes + size_bytes <= self._max_bytes

    @contextlib.contextmanager
    def holds(self, size_bytes: int) -> Iterator[None]:
        """Count a request as waiting."""
        self.requests += 1
        self.size_bytes += size_bytes
        try:
            yield
        finally:
            self.requests -= 1
            self.size_bytes -= size_bytes
