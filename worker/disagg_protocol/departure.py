"""PURE: How a worker leaves: first it may be on notice, for the length of a lease; then it ends.

On notice it takes nothing new, but stays ready for its requests, and it can be called back. A
notice that nobody renews is over by itself, so that no worker is left out for ever. Once it is
ending, it takes nothing new either, except from routers that have nobody else; it stays for those a
while. Times are monotonic, in seconds.
"""

from __future__ import annotations

import math

# A worker that is ending waits this long for a router that asked for it a moment ago: the router
# may not know yet that it has nobody else.
LINGER_S = 3.0
# The part of the time for its end in which a worker takes requests; those must have time to finish.
_TAKING_PART = 0.5


class Departure:
    """The notice and the end of one worker."""

    def __init__(self) -> None:
        self._since_s = math.inf
        self._until_s = -math.inf
        self._ending = False
        self._takes_until_s = -math.inf
        self._needed_until_s = -math.inf

    def give_notice(self, lease_s: float, now_s: float) -> None:
        """Give notice, or renew it, for `lease_s` seconds; with 0 the worker is called back."""
        if not self.on_notice(now_s):
            self._since_s = now_s
            # Others do its work from now on, unless a router says that there are none.
            self._needed_until_s = -math.inf
        self._until_s = now_s + lease_s

    def on_notice(self, now_s: float) -> bool:
        return now_s < self._until_s

    def router_asked(self, now_s: float, *, needs: bool) -> None:
        """Note that a router has looked at this worker, which it needs or does not."""
        if needs or not (self._ending or self.on_notice(now_s)):
            self._needed_until_s = max(self._needed_until_s, now_s + LINGER_S)

    def end(self, timeout_s: float, now_s: float) -> float:
        """Begin to end, and return the seconds that are left of `timeout_s`.

        A worker on notice has spent a part of them. Others do its work, unless a router has said
        lately that there are none: then a whole deployment may be deleted.
        """
        self._ending, left_s = True, timeout_s
        if self.on_notice(now_s):
            left_s = max(0.0, timeout_s - (now_s - self._since_s))
            if now_s >= self._needed_until_s:
                return left_s
        self._takes_until_s = now_s + left_s * _TAKING_PART
        return left_s

    def takes(self, now_s: float) -> bool:
        """Return whether it takes requests while it ends, from those who have nobody else."""
        return now_s < self._takes_until_s

    def needed_for_s(self, now_s: float) -> float:
        """Return how long it should stay although it has nothing to do."""
        return max(0.0, min(self._needed_until_s, self._takes_until_s) - now_s)

    def close(self) -> None:
        """Take nothing more."""
        self._takes_until_s = -math.inf
