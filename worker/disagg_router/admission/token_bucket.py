"""PURE: A token bucket: so much a minute, and up to a minute's worth at once."""

from __future__ import annotations

import math

# What is missing by rounding alone is there.
_ROUNDING = 1e-6


class TokenBucket:
    """A bucket that holds `per_minute` when it is full, and fills within a minute.

    All times are monotonic. A bucket may be overdrawn by what nobody knew beforehand; nothing is
    taken from it then until it has made up for that.
    """

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._at_s = now_s

    def _filled(self, now_s: float) -> float:
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)
        self._level = min(float(self.per_minute), self._level + passed_s * self.per_minute / 60)
        return self._level

    def remaining(self, now_s: float) -> int:
        """Return how much can be taken now."""
        return max(0, math.floor(self._filled(now_s) + _ROUNDING))

    def full_in_s(self, now_s: float) -> float:
        """Return in how many seconds the bucket is full if nothing is taken."""
        return (self.per_minute - self._filled(now_s)) * 60 / self.per_minute

    def take(self, amount: int, now_s: float) -> float:
        """Take an amount and return 0, or return in how many seconds it can be taken.

        That is infinite for an amount that the bucket never holds.
        """
        level = self._filled(now_s)
        if amount > self.per_minute:
            return math.inf
        if level + _ROUNDING >= amount:
            self._level = level - amount
            return 0.0
        return (amount - level) * 60 / self.per_minute

    def spend(self, amount: int, now_s: float) -> None:
        """Take an amount that has been used already."""
        self._level = self._filled(now_s) - amount

    def resize(self, per_minute: int, now_s: float) -> None:
        """Let the bucket hold and get another amount from now on."""
        level = self._filled(now_s)
        self.per_minute = per_minute
        self._level = min(level, float(per_minute))
