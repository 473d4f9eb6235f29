"""PURE: The circuit breaker of workers and pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from disagg_wire import series


@dataclass(slots=True)
class _Entry:
    """Something that has failed and has not succeeded since."""

    times: int
    """How often in a row it has failed."""
    failed_s: float
    """When it has failed last."""
    until_s: float
    """When it may be tried again."""
    probe_until_s: float = 0.0
    """Until when a try that is under way keeps others off."""


def kind_of(key: str) -> str:
    """Return whether a key is that of a worker or of a pair, as the metrics call it."""
    return series.PAIR if "|" in key else series.WORKER


@dataclass(slots=True)
class Breaker:
    """A circuit breaker. Something that failed is avoided (open) for up to 1 s until it succeeds,
    and up to twice as long after each further failure, up to 30 s. How long exactly, chance says.

    Then it is half open: one request or handshake at a time may try it, and its success closes the
    breaker.

    A failure while it is open belongs to work that was under way before and says nothing new, so
    many requests that one fault ended count once.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    probe_s: float = 15.0
    """For how long a try keeps others off, at most."""
    dice: Callable[[], float] = lambda: 1.0
    """Gives the part of the longest pause that is taken, from 0 to 1."""
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The changes so far, by kind and new state."""
    _failed: dict[str, _Entry] = field(default_factory=dict)

    def failed(self, key: str, now_s: float) -> None:
        entry = self._failed.get(key)
        if entry is not None and now_s < entry.until_s:
            return
        times = 0 if entry is None else entry.times
        # The exponent is bounded: within a night, failures reach a power of two that no float can
        # hold.
        pause_s = min(self.longest_s, self.first_s * 2.0 ** min(times, 30)) * self.dice()
        self._failed[key] = _Entry(times + 1, now_s, now_s + pause_s)
        self.changes[kind_of(key), series.OPEN] += 1

    def succeeded(self, key: str, began_s: float = math.inf) -> None:
        """Close it, unless what has succeeded began before the last failure."""
        entry = self._failed.get(key)
        if entry is not None and began_s >= entry.failed_s:
            del self._failed[key]
            self.changes[kind_of(key), series.CLOSED] += 1

    def is_open(self, key: str, now_s: float) -> bool:
        """Return whether nobody may try it now."""
        entry = self._failed.get(key)
        return entry is not None and (now_s < entry.until_s or now_s < entry.probe_until_s)

    def probe(self, keys: Iterable[str], now_s: float) -> tuple[str, ...]:
        """Keep others off what is half open, and return what that was: the caller tries it now, and
        calls `release` if it has neither succeeded nor failed.
        """
        tried = []
        for key in keys:
            entry = self._failed.get(key)
            if entry is not None and not self.is_open(key, now_s):
                entry.probe_until_s = now_s + self.probe_s
                self.changes[kind_of(key), series.HALF_OPEN] += 1
                tried.append(key)
        return tuple(tried)

    def release(self, keys: Iterable[str], since_s: float) -> None:
        """Let others try what has shown nothing since it was probed at `since_s`, unless another
        one tries it by now.
        """
        for key in keys:
            entry = self._failed.get(key)
            if entry is not None and entry.probe_until_s == since_s + self.probe_s:
                entry.probe_until_s = 0.0

    def counts(self, now_s: float) -> Counter[tuple[str, str]]:
        """Count what is not closed by kind and state."""
        return Counter(
            (kind_of(key), series.OPEN if now_s < entry.until_s else series.HALF_OPEN)
            for key, entry in self._failed.items()
        )

    def keep_only(self, incarnations: Collection[str], now_s: float) -> None:
        """Forget entries of workers that are gone, unless they are recent.

        Such workers may be back with the next poll.
        """
        self._failed = {
            key: entry
            for key, entry in self._failed.items()
            if now_s < entry.until_s or all(part in incarnations for part in key.split("|"))
        }
