"""The queue of keys to be reconciled: each at most once, by one worker at a time, with backoff.

Keys wait in lanes: somebody waits for the effect of an edit, and nobody for that of a full list.

`QueueState` holds the rules and never reads a clock. `KeyedQueue` adds the waiting.
"""

from __future__ import annotations

import asyncio
import enum
import heapq
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from disagg_operator.vocabulary import Key


class QueueFull(Exception):
    """Raised when the queue holds as many distinct keys as its bound allows.

    The next resync queues the refused keys again.
    """


class Lane(enum.IntEnum):
    """Why a key is to run, the most urgent reason first."""

    EDIT = 0
    """Somebody has written to a resource."""
    NEW = 1
    """A resource has been created."""
    EVENT = 2
    """Something else has happened to it, or its time has come."""
    RESYNC = 3
    """It is one of all."""


@dataclass(slots=True)
class QueueState:
    """The state of the queue.

    A key is queued, delayed, running, or running and dirty (to be run again). Failures back off for
    1, 2, 4 ... s, up to `max_backoff_s`; a success resets the backoff. An API server that does not
    answer is no fault of a key, so what fails by that waits for `max_away_s` at most: then all is
    well soon after the API server is back. An event brings forward a key that is delayed but not
    backing off. A key that is backing off keeps waiting, so that a burst of events cannot become a
    burst of retries.

    The first lane that holds a key comes next; but one that others have been preferred to
    `max_passed` times has its turn. Within a lane, first come is first served. Until then, no run
    of a full list begins while an edit is carried out, because it would slow that down; but an edit
    that hangs holds it up for `max_hold_s` only. Of a full list, `max_resync` keys run at once, so
    that an edit finds a worker that is free.
    """

    max_keys: int = 20_000
    base_backoff_s: float = 1.0
    max_backoff_s: float = 300.0
    max_away_s: float = 20.0
    jitter: float = 0.25
    """The share by which a pause after a failure may be longer, so that keys come apart."""
    max_passed: int = 4
    max_resync: int = 2
    max_hold_s: float = 5.0
    _lanes: dict[Lane, OrderedDict[Key, None]] = field(default_factory=lambda: {lane: OrderedDict() for lane in Lane})
    _passed: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    _queued: dict[Key, Lane] = field(default_factory=dict)
    _running: dict[Key, tuple[Lane, float]] = field(default_factory=dict)
    _dirty: dict[Key, Lane] = field(default_factory=dict)
    _due: dict[Key, float] = field(default_factory=dict)
    _heap: list[tuple[float, Key]] = field(default_factory=list)
    _failures: dict[Key, int] = field(default_factory=dict)

    def add(self, key: Key, now: float, delay_s: float = 0.0, *, urgent: bool = False, lane: Lane = Lane.EVENT) -> None:
        """Ask for a run of `key` after at least `delay_s`. `urgent` ends the backoff of the key.

        A key that waits in a later lane already moves to the end of this one. Raises QueueFull.
        """
        if urgent:
            self._failures.pop(key, None)
        if key in self._running:
            self._dirty[key] = min(lane, self._dirty.get(key, lane))
            return
        if (held := self._queued.get(key)) is not None:
            if delay_s <= 0:
                self._hurry(key, lane)
            elif held is Lane.RESYNC and self._due.get(key, float("inf")) > now + delay_s:
                self._later(key, now + delay_s)
            return
        if key in self._failures and key in self._due:
            return
        if delay_s <= 0:
            if lane is not Lane.RESYNC:  # or its time may come before its turn
                self._due.pop(key, None)
            self._push(key, lane)
        elif self._due.get(key, float("inf")) > now + delay_s:
            self._later(key, now + delay_s)

    def pop(self, now: float) -> Key | None:
        """Return the next key that is due, or None. The key is running until `done` is called."""
        while self._heap and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:  # otherwise the key was brought forward or dropped
                del self._due[key]
                if key in self._queued:
                    self._hurry(key, Lane.EVENT)
                else:
                    self._push(key, Lane.EVENT)
        lane = self._next_lane(now)
        if lane is None:
            return None
        key, _ = self._lanes[lane].popitem(last=False)
        del self._queued[key]
        self._due.pop(key, None)
        self._running[key] = lane, now
        return key

    def _next_lane(self, now: float) -> Lane | None:
        held = now < self._held_until()
        waiting = [lane for lane in Lane if self._lanes[lane] and not (held and lane is Lane.RESYNC)]
        if not waiting:
            return None
        late = [lane for lane in waiting if self._passed[lane] >= self.max_passed]
        chosen = max(late, key=lambda lane: (self._passed[lane], lane)) if late else waiting[0]
        for lane in Lane:
            is_passed = bool(self._lanes[lane]) and lane is not chosen
            self._passed[lane] = self._passed[lane] + 1 if is_passed else 0
        return chosen

    def _held_until(self) -> float:
        """Return until when no run of a full list may begin, if no other run ends before."""
        lanes = [lane for lane, _ in self._running.values()]
        if lanes.count(Lane.RESYNC) >= self.max_resync:
            return math.inf
        edits = [began for lane, began in self._running.values() if lane is Lane.EDIT]
        return max(edits) + self.max_hold_s if edits and self._passed[Lane.RESYNC] < self.max_passed else 0.0

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
        self._running.pop(key, None)
        dirty = self._dirty.pop(key, None)
        if failed:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            most_s = self.max_away_s if away else self.max_backoff_s
            backoff = min(self.base_backoff_s * 2.0 ** min(count - 1, 30), most_s)
            pause_s = max(backoff, min(after_s or 0.0, self.max_backoff_s))
            self._later(key, now + pause_s * (1 + self.jitter * chance))
            return
        self._failures.pop(key, None)
        if dirty is not None:
            self._push(key, dirty)
        elif after_s is not None:
            self._later(key, now + after_s)

    def next_due(self) -> float | None:
        """Return the time at which a key that is delayed or held up may run, or None."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        held = self._held_until() if self._lanes[Lane.RESYNC] else math.inf
        due = min(held or math.inf, self._heap[0][0] if self._heap else math.inf)
        return None if math.isinf(due) else due

    def failures(self, key: Key) -> int:
        """Return the number of consecutive failures of a key."""
        return self._failures.get(key, 0)

    def depth(self) -> int:
        """Return the number of keys that are due and not yet running."""
        return len(self._queued)

    def running(self) -> int:
        """Return the number of keys that are running."""
        return len(self._running)

    def _hurry(self, key: Key, lane: Lane) -> None:
        if lane < (held := self._queued[key]):
            del self._lanes[held][key]
            self._queued[key] = lane
            self._lanes[lane][key] = None

    def _push(self, key: Key, lane: Lane) -> None:
        if len(self._queued) + len(self._due) >= self.max_keys:
            raise QueueFull(f"{self.max_keys} keys are queued")
        self._queued[key] = lane
        self._lanes[lane][key] = None

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

    def add(self, key: Key, delay_s: float = 0.0, *, urgent: bool = False, lane: Lane = Lane.EVENT) -> None:
        if self._closed:
            return
        self.state.add(key, self._clock(), delay_s, urgent=urgent, lane=lane)
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
