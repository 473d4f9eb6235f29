"""PURE: What became of the requests that the new and the old revision have had in each minute,
while a revision is tried.

A request counts in the minute in which it began, so that both revisions are followed equally long:
requests that hang or take long end late, and counting what has ended would leave them out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disagg_router.workers.canary import Canary
from disagg_wire.canary import KEPT_MINUTES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request, or what is known of that while it runs."""

    new: bool
    """Whether it is one of the new revision."""
    missed: bool
    """Whether it has missed the objectives, so far."""
    settled: bool = True
    """Whether that is known, whatever comes."""


Judge = Callable[[bool], Outcome | None]
"""Returns what became of a request, given whether it is over; None if it tells nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A request that runs."""

    minute: int
    epoch_s: float
    judge: Judge


class CanaryTally:
    """The counts of one router. They begin anew with each trial.

    A minute waits for its requests for `follow_s` seconds after they began; what is not known of
    them by then is counted as kept, for both revisions alike, and corrected when it is known.
    """

    def __init__(self, follow_s: float) -> None:
        self._follow_s = follow_s
        self._name = ""
        self._minutes: dict[int, list[int]] = {}
        self._running: set[Begun] = set()

    def begin(self, name: str, epoch_s: float, judge: Judge) -> Begun:
        """Take in a request that begins while the trial of this name goes on."""
        if name != self._name:
            self._name, self._minutes, self._running = name, {}, set()
        request = Begun(int(epoch_s // 60), epoch_s, judge)
        self._running.add(request)
        return request

    def end(self, request: Begun) -> None:
        """Count a request that is over; one of an earlier trial counts for nothing."""
        if request not in self._running:
            return
        self._running.remove(request)
        if (outcome := request.judge(True)) is not None:
            _add(self._minutes, request.minute, outcome)
        while len(self._minutes) > KEPT_MINUTES:
            del self._minutes[min(self._minutes)]

    def to_json(self, canary: Canary | None, epoch_s: float) -> dict[str, Any] | None:
        """Return the counts for the operator: of each minute the requests of the new revision,
        those of them that met the objectives, and both of the old one.

        `through` is the last minute up to which nothing is waited for.
        """
        if canary is None or not canary.name:
            return None
        minutes, through = dict[int, list[int]](), int(epoch_s // 60) - 1
        if canary.name == self._name:
            minutes = {minute: [*counts] for minute, counts in self._minutes.items()}
            for request in self._running:
                outcome = request.judge(False)
                if outcome is not None:
                    _add(minutes, request.minute, outcome)
                if (outcome is None or not outcome.settled) and epoch_s - request.epoch_s < self._follow_s:
                    through = min(through, request.minute - 1)
        return {
            "revision": canary.name,
            "percent": canary.percent,
            "through": through,
            "minutes": [[minute, *counts] for minute, counts in sorted(minutes.items())],
        }


def _add(minutes: dict[int, list[int]], minute: int, outcome: Outcome) -> None:
    counts = minutes.setdefault(minute, [0, 0, 0, 0])
    first = 0 if outcome.new else 2
    counts[first] += 1
    counts[first + 1] += not outcome.missed
