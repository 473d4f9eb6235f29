"""PURE: The order of waiting requests: by deadline where that can still be met, without starvation.

1. Requests that can still be on time go first, by deadline. A request without a deadline is never
   late and counts as due when it arrived, so it goes before all requests that arrived after it.
2. Requests that will be late in any case follow, by arrival: serving them earlier would only make
   others late.
3. Every second place goes to the request that has waited longest, once its wait reaches the
   patience, and three of four places once its wait reaches twice the patience. During an overload
   the other places are left to requests that can be on time. A patience of 0 means first come,
   first served.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from disagg_router.admission.asker import NOBODY, Asker

# Entries of requests that have left are dropped when they reach the head of a heap. They are
# dropped all at once when they outnumber the other entries by this many.
_MAX_STALE = 64
# How many places in a row may go to requests that have waited for the patience, and for twice the
# patience.
_IN_A_ROW = (1, 3)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request's place in the order. All times are monotonic."""

    number: int
    """The number of the request. Numbers rise with arrival times."""
    arrived_s: float
    """The time at which the request arrived."""
    due_s: float | None = None
    """The time by which its first token should be out; None for a request without a deadline."""
    alone_s: float = 0.0
    """The seconds that its first token takes to compute when nothing else runs."""
    asker: Asker = NOBODY
    """The line in which it waits, beside those of others (fair_order.py)."""

    @property
    def ranked_s(self) -> float:
        return self.arrived_s if self.due_s is None else self.due_s

    def is_late(self, now_s: float) -> bool:
        return self.due_s is not None and now_s + self.alone_s > self.due_s

    def is_old(self, now_s: float, patience_s: float, in_a_row: int) -> bool:
        """Return whether the request has waited for the patience and it is the turn of such
        requests.
        """
        waited_s = now_s - self.arrived_s
        return waited_s >= patience_s and in_a_row < _IN_A_ROW[waited_s >= 2 * patience_s]

    def precedence(self, now_s: float, patience_s: float, old_in_a_row: int) -> tuple[int, float, int]:
        """Return a sort key; the request with the smaller key goes first.

        `old_in_a_row` is the number of most recent places that went, one after the other, to
        requests that had waited for the patience.
        """
        if self.is_old(now_s, patience_s, old_in_a_row):
            return 0, 0.0, self.number
        return (2, 0.0, self.number) if self.is_late(now_s) else (1, self.ranked_s, self.number)


class Ordered:
    """The waiting requests in order.

    `now_s` must never decrease from call to call: a request that is late stays late.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._old_in_a_row = 0
        self._here: dict[int, Turn] = {}
        self._by_number: list[int] = []
        # (ranked_s, number) of every request that has not reached the head yet, or was on time when
        # it did.
        self._by_rank: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._here)

    def __contains__(self, turn: Turn) -> bool:
        return turn.number in self._here

    def join(self, turn: Turn) -> None:
        self._here[turn.number] = turn
        heapq.heappush(self._by_number, turn.number)
        heapq.heappush(self._by_rank, (turn.ranked_s, turn.number))

    def leave(self, turn: Turn) -> None:
        del self._here[turn.number]
        most = 2 * len(self._here) + _MAX_STALE
        if len(self._by_number) > most:
            self._by_number = sorted(self._here)
        if len(self._by_rank) > most:
            self._by_rank = sorted((t.ranked_s, t.number) for t in self._here.values())

    def first(self, now_s: float) -> Turn | None:
        while self._by_number and self._by_number[0] not in self._here:
            heapq.heappop(self._by_number)
        if not self._by_number:
            return None
        oldest = self._here[self._by_number[0]]
        if oldest.is_old(now_s, self._patience_s, self._old_in_a_row):
            return oldest
        while self._by_rank:
            ranked_s, number = self._by_rank[0]
            turn = self._here.get(number)
            if turn is not None and turn.ranked_s == ranked_s and not turn.is_late(now_s):
                return turn
            heapq.heappop(self._by_rank)
        return oldest

    def before(self, one: Turn, other: Turn, now_s: float) -> bool:
        return self._precedence(one, now_s) < self._precedence(other, now_s)

    def _precedence(self, turn: Turn, now_s: float) -> tuple[int, float, int]:
        return turn.precedence(now_s, self._patience_s, self._old_in_a_row)

    def placed(self, turn: Turn, now_s: float) -> None:
        """Record that a request got its place: requests that have and have not waited for the
        patience take turns.
        """
        old = 0 < self._patience_s <= now_s - turn.arrived_s
        self._old_in_a_row = self._old_in_a_row + 1 if old else 0
