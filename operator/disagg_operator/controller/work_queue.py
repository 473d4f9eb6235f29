"""The queue of keys to be reconciled: each at most once, by one worker at a time, with backoff.

`QueueState` holds the rules and never reads a clock. `KeyedQueue` adds the waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_operator.vocabulary import Key


class QueueFull(Exception):
    """Raised when the queue holds as many distinct keys as its bound allows.

    The next resync queues the refused keys again.
    """


@dataclass(slots=True)
class QueueState:
    """The state of the queue.

    A key is queued, delayed, running, or running and dirty (to be run again). Failures back off for
    1, 2, 4 ... s, up to `max_backoff_s`; a success resets the backoff. An API server that does not
    answer is no fault of a key, so what fails by that waits for `max_away_s` at most: then all is
    well soon after the API server is back. An event brings forward a key that is delayed but not
    backing off. A key that is backing off keeps waiting, so that a burst of events cannot become a
    burst of retries.
    """

    max_keys: int = 20_000
    base_backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    max_away_s: float = 20.0
    jitter: float = 0.25
    """The share by which a pause after a failure may be longer, so that keys come apart."""
    _ready: deque[Key] = field(default_factory=deque)
    _queued: set[Key] = field(default_factory=set)
    _running: set[Key] = field(default_factory=set)
    _dirty: set[Key] = field(default_factory=set)
    _due: dict[Key, float] = field(default_factory=dict)
    _heap: list[tuple[float, Key]] = field(default_factory=list)
    _failures: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, now: float, delay_s: float = 0.0, *, urgent: bool = False) -> None:
        """Ask for a run of `key` after at least `delay_s`. `urgent` ends the backoff of the key.

        Raises QueueFull.
        """
        if urgent:
            self._failures.pop(key, None)
        if key in self._running:
            self._dirty.add(key)
            return
        if key in self._queued or (key in self._failures and key in self._due):
            return
        if delay_s <= 0:
            self._due.pop(key, None)
            self._push(key)
        elif self._due.get(key, float("inf")) > now + delay_s:
            self._later(key, now + delay_s)

    def pop(self, now: float) -> Key | None:
        """Return the next key that is due, or None. The key is running until `done` is called."""
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # otherwise the key was brought forward or dropped
                del self._due[key]
                self._push(key)
        if not self._ready:
            return None
        key = self._ready.popleft()
        self._queued.discard(key)
        self._running.add(key)
        return key

    def done(
        self,
        key: Key,
        now: float,
        *,
        failed: bool = False,
        away: bool = False,
        after_s: float | None = None,
        chance: float = 0.0,
    ) -> None:
        """Record that the run of `key` has ended; `away` if that was for want of an API server.

        The key does not run again before `after_s` seconds have passed. This is a server's
        Retry-After, of which five minutes are believed, or the delay until a requested second run.
        `chance` is a random number from 0 to 1.
        """
        self._running.discard(key)
        dirty = key in self._dirty
        self._dirty.discard(key)
        if failed:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            most_s = self.max_away_s if away else self.max_backoff_s
            backoff = min(self.base_backoff_s * 2.0 ** min(count - 1, 30), most_s)
            pause_s = max(backoff, min(after_s or 0.0, self.max_backoff_s))
            self._later(key, now + pause_s * (1 + self.jitter * chance))
            return
        self._failures.pop(key, None)
        if dirty:
            self._push(key)
        elif after_s is not None:
            self._later(key, now + after_s)

    def next_due(self) -> float | None:
        """Return the time at which the next delayed key becomes due, or None."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def failures(self, key: Key) -> int:
        """Return the number of consecutive failures of a key."""
        return self._failures.get(key, 0)

    def depth(self) -> int:
        """Return the number of keys that are due and not yet running."""
        return len(self._ready)

    def running(self) -> int:
        """Return the number of keys that are running."""
        return len(self._running)

    def _push(self, key: Key) -> None:
        if len(self._queued) + len(self._due) >= self.max_keys:
            raise QueueFull(f"{self.max_keys} keys are queued")
        self._queued.add(key)
        self._ready.append(key)

    def _later(self, key: Key, due: float) -> None:
        if key not in self._due and len(self._queued) + len(self._due) >= self.max_keys:
            raise QueueFull(f"{self.max_keys} keys are queued")
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))


class KeyedQueue:
    """`QueueState` for asyncio.

    It belongs to one event loop, and only `get` and `idle` wait.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        state: QueueState | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self.state = state or QueueState()
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def add(self, key: Key, delay_s: float = 0.0, *, urgent: bool = False) -> None:
        if self._closed:
            return
        self.state.add(key, self._clock(), delay_s, urgent=urgent)
        self._changed.set()

    def done(self, key: Key, *, failed: bool = False, away: bool = False, after_s: float | None = None) -> None:
        self.state.done(key, self._clock(), failed=failed, away=away, after_s=after_s, chance=self._chance())
        self._changed.set()
        if not self.state.running():
            self._idle.set()

    def close(self) -> None:
        """Let no more keys in or out. Runs in progress may end."""
        self._closed = True
        self._changed.set()

    async def idle(self) -> None:
        """Wait until no key is running."""
        await self._idle.wait()

    async def get(self) -> Key | None:
        """Wait for the next key and return it, or None after `close`."""
        while not self._closed:
            self._changed.clear()
            now = self._clock()
            key = self.state.pop(now)
            if key is not None:
                self._idle.clear()
                if self.state.depth():
                    self._changed.set()  # another worker may take the next one
                return key
            due = self.state.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - now)):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None
