"""PURE: who of those that wait is first: whoever can be on time, by deadline, and nobody starves.

1. Who can still be on time, by deadline. A request without one is never late and counts as due when
   it came, so it is before all that came after it.
2. Who is late whatever is done, by arrival: it would only make others late.
3. Every second one to get its place is the one that has waited longest, once that is the patience,
   and three of four once it is twice as long: an overload leaves the others to those who can be on
   time. A patience of 0 is first come, first served.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

# Entries of those that left are dropped at the head, and all at once when they are more than the
# others by so many.
_MAX_STALE = 64
# So many in a row may be those that have waited once the patience, and twice.
_IN_A_ROW = (1, 3)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request's place.

    Numbers and arrivals rise together. `due_s`: when its first token should be out, which takes
    `alone_s` of computing. All times are monotonic.
    """

    number: int
    arrived_s: float
    due_s: float | None = None
    alone_s: float = 0.0

    @property
    def ranked_s(self) -> float:
        return self.arrived_s if self.due_s is None else self.due_s

    def is_late(self, now_s: float) -> bool:
        return self.due_s is not None and now_s + self.alone_s > self.due_s

    def is_old(self, now_s: float, patience_s: float, in_a_row: int) -> bool:
        """It has waited for the patience, and it is the turn of such."""
        waited_s = now_s - self.arrived_s
        return waited_s >= patience_s and in_a_row < _IN_A_ROW[waited_s >= 2 * patience_s]

    def precedence(self, now_s: float, patience_s: float, old_in_a_row: int) -> tuple[int, float, int]:
        """The smaller goes first.

        `old_in_a_row`: the last so many to get their places had waited for the patience.
        """
        if self.is_old(now_s, patience_s, old_in_a_row):
            return 0, 0.0, self.number
        return (2, 0.0, self.number) if self.is_late(now_s) else (1, self.ranked_s, self.number)


class Ordered:
    """Those that wait. `now_s` never falls from call to call: who is late stays so."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._old_in_a_row = 0
        self._here: dict[int, Turn] = {}
        self._by_number: list[int] = []
        # (ranked_s, number) of all that were on time when they came to its head, or did not come
        # there yet.
        self._by_rank: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._here)

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
        """It got its place: who has waited for the patience and who has not take turns."""
        old = 0 < self._patience_s <= now_s - turn.arrived_s
        self._old_in_a_row = self._old_in_a_row + 1 if old else 0
