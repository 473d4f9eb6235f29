"""PURE: What the routers have counted of a canary, collected over routers and minutes.

A router tells its last two hours at every look, so that an operator that has just started knows
nearly all. What a router has told stays known when it is gone. No clock is compared with another:
the routers begin anew with each trial, and say themselves what is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from disagg_operator.rollout.canary_verdict import Comparison, Minute

# More routers than that are not remembered; a deployment has at most 100 at a time.
_MOST_ROUTERS = 256
_MOST_MINUTES = 3000
_MOST = 1 << 40

Minutes = Mapping[int, Minute]


@dataclass(frozen=True, slots=True)
class RouterCounts:
    """The report of a router on a trial."""

    minutes: Minutes = field(default_factory=dict)
    through: int = -1
    """The last minute up to which nothing is waited for."""


@dataclass(frozen=True, slots=True)
class CanaryReports:
    """The reports, by trial and router."""

    told: Mapping[str, Mapping[str, RouterCounts]] = field(default_factory=dict)
    answering: frozenset[str] = frozenset()
    """The routers that have told something at the last look."""

    def evidence(self, name: str) -> Comparison:
        """Return what is known of a trial.

        Minutes count in their order, and each once no router that answers waits for one of its
        requests, whatever became of these: otherwise those that hang would be left out.
        """
        if not (routers := self.told.get(name)):
            return Comparison(coming=None)
        through = min((told.through for router, told in routers.items() if router in self.answering), default=_MOST)
        whole, coming = dict[int, list[int]](), dict[int, list[int]]()
        for told in routers.values():
            for minute, counts in told.minutes.items():
                for sums in (coming, whole) if minute <= min(through, told.through) else (coming,):
                    sums[minute] = [a + b for a, b in zip(sums.get(minute, (0, 0, 0, 0)), counts, strict=True)]
        both = [_of_both(sums) for sums in (whole, coming)]
        return Comparison(tuple(both[0]), min(sum(m[0] for m in both[1]), sum(m[2] for m in both[1])))


def _of_both(minutes: Mapping[int, list[int]]) -> list[Minute]:
    """Return the minutes in which both revisions had requests."""
    return [(a, b, c, d) for _, (a, b, c, d) in sorted(minutes.items()) if a and c]


def noted(before: CanaryReports, states: Iterable[Mapping[str, Any]]) -> CanaryReports:
    """Return what is known after the answers of the routers to /internal/v1/state.

    Trials that no router tells of any more are forgotten, once one tells of another.
    """
    found = [one for state in states if (one := _told(state)) is not None]
    if not found:
        return before
    known = {name: dict(before.told.get(name, {})) for _, name, _ in found}
    for router, name, told in found:
        routers = known[name]
        if router in routers or len(routers) < _MOST_ROUTERS:
            minutes = {**routers.get(router, RouterCounts()).minutes, **told.minutes}
            routers[router] = RouterCounts(_longest(minutes), told.through)
    return CanaryReports(known, frozenset(router for router, _, _ in found))


def _longest(minutes: Minutes) -> Minutes:
    return {minute: minutes[minute] for minute in sorted(minutes)[-_MOST_MINUTES:]}


def _told(state: Mapping[str, Any]) -> tuple[str, str, RouterCounts] | None:
    """Return the router, the name of the trial and the counts, or None if nothing is told."""
    router, canary = state.get("incarnation"), state.get("canary")
    if not isinstance(router, str) or not isinstance(canary, Mapping):
        return None
    name, listed, through = canary.get("revision"), canary.get("minutes"), canary.get("through")
    if not isinstance(name, str) or not name or not isinstance(listed, list) or not _is_count(through):
        return None
    minutes = {}
    for row in listed[-_MOST_MINUTES:]:
        if not isinstance(row, list) or len(row) != 5 or not all(map(_is_count, row)):
            continue
        minute, new, new_met, old, old_met = row
        if new_met <= new and old_met <= old:
            minutes[minute] = (new, new_met, old, old_met)
    return router, name, RouterCounts(minutes, through)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MOST
