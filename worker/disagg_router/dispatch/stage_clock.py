"""PURE: The stages of a request until its first token, which add up to the time that it took."""

from __future__ import annotations

from collections import defaultdict, deque

from disagg_router.tracing.attempt_record import CHOOSE, FAILED
from disagg_wire import series

# A request that waits for long may go through more; the last ones are remembered.
_MOST_MARKS = 256


class StageClock:
    """The seconds of one request in each stage; it is in one of them at any time.

    `marks` are the changes with their times, before and after the first token.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.marks: deque[tuple[str, float]] = deque(maxlen=_MOST_MARKS)
        self.attempt_s: float | None = None
        """The time at which the present attempt began, if there is one."""
        self._stage = series.ADMIT
        self._since_s: float | None = None
        self._before_attempt: dict[str, float] | None = None

    def start(self, arrived_s: float, held_s: float = 0.0) -> None:
        """Begin with a request that arrived then, and has waited `held_s` seconds for workers."""
        if self._since_s is None:
            self._since_s = arrived_s + held_s
            self.seconds[series.HOLD] += held_s

    def enter(self, stage: str, now_s: float) -> None:
        """Note that the request goes on to another stage."""
        self._spend(now_s)
        self._stage = stage
        self.marks.append((stage, now_s))

    def chooses(self, now_s: float) -> None:
        """Note that workers are chosen now, which is part of the stage before."""
        self.marks.append((CHOOSE, now_s))

    def attempt(self, now_s: float) -> None:
        """Note that workers are asked."""
        self.enter(series.RESERVE, now_s)
        self.attempt_s = now_s
        self._before_attempt = self.seconds.copy()

    def failed(self, now_s: float) -> None:
        """Note that what workers were asked for came to nothing: its time was a retry's."""
        self._spend(now_s)
        self.marks.append((FAILED, now_s))
        self.attempt_s = None
        if (before := self._before_attempt) is not None:
            lost_s = sum(self.seconds.values()) - sum(before.values())
            self.seconds = before
            self.seconds[series.RETRY] += lost_s
            self._before_attempt, self._stage = None, series.RETRY

    def end(self, first_s: float) -> dict[str, float]:
        """Return the seconds of each stage of a request whose first token came then."""
        self._spend(first_s)
        self._since_s = None
        return dict(self.seconds)

    def _spend(self, now_s: float) -> None:
        if self._since_s is not None:
            self.seconds[self._stage] += max(0.0, now_s - self._since_s)
            self._since_s = max(self._since_s, now_s)
