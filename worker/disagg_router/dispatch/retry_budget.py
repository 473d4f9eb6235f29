"""PURE: A budget of further attempts, as a share of the traffic.

The first attempt after a failure replaces what was lost, and costs nothing. Those after it would
multiply the load of a fault that does not pass, and wait for their turn.
"""

from __future__ import annotations

from collections import deque

_WINDOW_S = 10.0
_MAX_ARRIVALS = 4096


class RetryBudget:
    """A bucket that fills with a share of the arrivals of the last seconds, and by itself a
    little.
    """

    def __init__(self, share: float = 0.2, least_per_s: float = 2.0, burst: float = 10.0) -> None:
        self._share = share
        self._least_per_s = least_per_s
        self._burst = burst
        self._left = burst
        self._filled_s: float | None = None
        self._arrivals: deque[float] = deque(maxlen=_MAX_ARRIVALS)

    def arrived(self, now_s: float) -> None:
        """Note a request."""
        self._arrivals.append(now_s)

    def _per_s(self, now_s: float) -> float:
        while self._arrivals and self._arrivals[0] < now_s - _WINDOW_S:
            self._arrivals.popleft()
        return self._least_per_s + self._share * len(self._arrivals) / _WINDOW_S

    def _fill(self, now_s: float) -> float:
        per_s = self._per_s(now_s)
        if self._filled_s is not None:
            self._left = min(self._burst, self._left + per_s * max(0.0, now_s - self._filled_s))
        self._filled_s = now_s
        return per_s

    def wait_s(self, now_s: float) -> float:
        """Take a place, and return the seconds until it is there."""
        per_s = self._fill(now_s)
        self._left -= 1.0
        return max(0.0, -self._left / per_s)

    def give_back(self) -> None:
        """Return a place that is not needed any more."""
        self._left = min(self._burst, self._left + 1.0)

    def left(self, now_s: float) -> float:
        """Return the places that are there now; below 0, how many are waited for."""
        self._fill(now_s)
        return self._left

    def spare(self, now_s: float) -> bool:
        """Take a place if one is there now, and return whether one was."""
        self._fill(now_s)
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
