"""PURE: What the routers have counted of a canary, collected over routers and minutes.

A router tells its last two hours at every look, so that an operator that has just started knows
nearly all. What a router has told stays known when it is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_operator.rollout.canary_verdict import Comparison, Counts

# More routers than that are not remembered; a deployment has at most 100 at a time.
_MOST_ROUTERS = 256
_MOST_MINUTES = 3000
_MOST = 1 << 40

Minutes = Mapping[int, tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class CanaryReports:
    """What was told, by revision and router."""

    told: Mapping[str, Mapping[str, Minutes]] = field(default_factory=dict)

    def evidence(self, revision: str, since_s: float) -> Comparison:
        """Return the counts of the minutes since then in which both revisions had requests."""
        minutes: dict[int, list[int]] = {}
        for told in self.told.get(revision, {}).values():
            for minute, counts in told.items():
                if 60 * (minute + 1) > since_s:
                    so_far = minutes.setdefault(minute, [0, 0, 0, 0])
                    minutes[minute] = [a + b for a, b in zip(so_far, counts, strict=True)]
        both = [counts for counts in minutes.values() if counts[0] and counts[2]]
        new, new_met, old, old_met = (sum(counts[i] for counts in both) for i in range(4))
        return Comparison(Counts(new, new_met), Counts(old, old_met))


def noted(before: CanaryReports, states: Iterable[Mapping[str, Any]]) -> CanaryReports:
    """Return what is known after the answers of the routers to /internal/v1/state.

    Revisions that no router tells of any more are forgotten, once one tells of another.
    """
    found = [one for state in states if (one := _told(state)) is not None]
    if not found:
        return before
    known = {revision: dict(before.told.get(revision, {})) for _, revision, _ in found}
    for router, revision, minutes in found:
        routers = known[revision]
        if router in routers or len(routers) < _MOST_ROUTERS:
            routers[router] = _longest({**routers.get(router, {}), **minutes})
    return CanaryReports(known)


def _longest(minutes: Minutes) -> Minutes:
    return {minute: minutes[minute] for minute in sorted(minutes)[-_MOST_MINUTES:]}


def _told(state: Mapping[str, Any]) -> tuple[str, str, Minutes] | None:
    """Return the router, the revision and the counts, or None if nothing is told."""
    router, canary = state.get("incarnation"), state.get("canary")
    if not isinstance(router, str) or not isinstance(canary, Mapping):
        return None
    revision, listed = canary.get("revision"), canary.get("minutes")
    if not isinstance(revision, str) or not revision or not isinstance(listed, list):
        return None
    minutes = {}
    for row in listed[-_MOST_MINUTES:]:
        if not isinstance(row, list) or len(row) != 5 or not all(type(n) is int and 0 <= n < _MOST for n in row):
            continue
        minute, new, new_met, old, old_met = row
        if new_met <= new and old_met <= old:
            minutes[minute] = (new, new_met, old, old_met)
    return router, revision, minutes
