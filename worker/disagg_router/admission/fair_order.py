"""PURE: The order of waiting requests over all API keys.

1. Requests of a higher priority go first.
2. Of the lines of one priority, the one goes first of which the fewest requests run, so that keys
   that want more than they get have equally many places in the pools, however many wait.
3. Where that is equal, the line goes first that has got the fewest tokens since it has been waiting
   (start-time fair queueing: a line that had nothing to do gets no credit for that time), and then
   the one whose request came first.

Within a line the order is that of turn_order.py. With one line, it is that alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from disagg_router.admission.asker import Asker
from disagg_router.admission.turn_order import Ordered, Turn

_Rank = tuple[int, int, float]


@dataclass(slots=True)
class _Line:
    """The requests of one key: those that wait, in order, and those that run or try to."""

    order: Ordered
    here: int = 0
    """The number of all of them."""
    got: float = 0.0
    """The tokens that it has got, on the clock of all lines."""

    @property
    def running(self) -> int:
        return max(0, self.here - len(self.order))


class FairOrder:
    """The waiting requests of all lines, in order. `now_s` must never decrease from call to
    call.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._lines: dict[Asker, _Line] = {}
        self._waiting = 0
        self._clock = 0.0

    def __len__(self) -> int:
        return self._waiting

    def came(self, turn: Turn) -> None:
        """Note a request, which counts as running while it does not wait."""
        self._line(turn).here += 1

    def went(self, turn: Turn, tokens: int) -> None:
        """Note that a request is over, and how many tokens were computed for it."""
        line = self._line(turn)
        if self._waiting:
            line.got = max(self._clock, line.got) + tokens
        line.here -= 1
        if line.here <= 0 and not len(line.order):
            # What it has got counts as long as others wait for their share.
            line.here = 0
            if line.got <= self._clock or not self._waiting:
                del self._lines[turn.asker]

    def join(self, turn: Turn) -> None:
        """Let a request wait."""
        self._line(turn).order.join(turn)
        self._waiting += 1

    def leave(self, turn: Turn) -> None:
        """Let a request wait no more."""
        self._line(turn).order.leave(turn)
        self._waiting -= 1
        if not self._waiting:
            self._forget()

    def first(self, now_s: float) -> Turn | None:
        """Return the request whose turn it is, or None if nobody waits."""
        found: tuple[_Rank, int] | None = None
        best: Turn | None = None
        for asker, line in self._lines.items():
            turn = line.order.first(now_s)
            if turn is None:
                continue
            key = (self._rank(asker, line, line.running), turn.number)
            if found is None or key < found:
                found, best = key, turn
        return best

    def before(self, one: Turn, other: Turn, now_s: float) -> bool:
        """Return whether a request has precedence over another, whether they wait or not."""
        if one.asker == other.asker:
            return self._line(one).order.before(one, other, now_s)
        return self._key(one) < self._key(other)

    def placed(self, turn: Turn, now_s: float) -> None:
        """Record that a request that has waited got its place."""
        line = self._line(turn)
        line.order.placed(turn, now_s)
        line.got = max(self._clock, line.got)
        self._clock = line.got

    def _line(self, turn: Turn) -> _Line:
        line = self._lines.get(turn.asker)
        if line is None:
            line = self._lines[turn.asker] = _Line(Ordered(self._patience_s))
        return line

    def _key(self, turn: Turn) -> tuple[_Rank, int]:
        line = self._line(turn)
        # A request that tries is not in its own way.
        running = line.running if turn in line.order else max(0, line.running - 1)
        return self._rank(turn.asker, line, running), turn.number

    def _rank(self, asker: Asker, line: _Line, running: int) -> _Rank:
        return -asker.priority, running, max(self._clock, line.got)

    def _forget(self) -> None:
        """Begin to count anew: everybody has what he wanted."""
        self._clock = 0.0
        for asker, line in list(self._lines.items()):
            line.got = 0.0
            if not line.here:
                del self._lines[asker]
