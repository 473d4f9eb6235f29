"""The queues in front of full pools, one for each model.

While one model replaces another, requests for the one that is full must not keep those for the
other waiting.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator

from disagg_router.admission.backlog import Backlog
from disagg_router.admission.hold import Hold
from disagg_router.admission.waiting_queue import AdmissionQueue

# The pool that requests count for that wait for a model.
_POOL_OF_HELD = "decode"


class Queues:
    """All that waits: a queue for each model that has requests, and the hold."""

    def __init__(self, backlog: Backlog, hold: Hold, max_wait_s: float, patience_s: float) -> None:
        self._backlog = backlog
        self.hold = hold
        self._max_wait_s = max_wait_s
        self._patience_s = patience_s
        self._queues: dict[Hashable, AdmissionQueue] = {}
        self._users: Counter[Hashable] = Counter()

    @contextlib.contextmanager
    def queue(self, model: Hashable) -> Iterator[AdmissionQueue]:
        """Yield the queue of a model, which exists as long as anybody uses it."""
        found = self._queues.get(model)
        if found is None:
            found = self._queues[model] = AdmissionQueue(self._backlog, self._max_wait_s, self._patience_s)
        self._users[model] += 1
        try:
            yield found
        finally:
            self._users[model] -= 1
            if not self._users[model]:
                del self._users[model], self._queues[model]

    @property
    def idle(self) -> bool:
        """Whether nobody waits, and nobody tries after a wait."""
        return self.hold.waiting == 0 and all(queue.idle for queue in self._queues.values())

    def waiting(self, pool: str) -> int:
        """Return how many requests wait for a pool; those that wait for a model wait for decode."""
        held = self.hold.waiting if pool == _POOL_OF_HELD else 0
        return held + sum(queue.waiting(pool) for queue in self._queues.values())

    def wake(self) -> None:
        """Let the first request of each model try."""
        for queue in self._queues.values():
            queue.wake()

    def recheck(self) -> None:
        """Let all requests look whether their model is still the right one."""
        self.hold.recheck()
        for queue in self._queues.values():
            queue.recheck()
