"""PURE: The requests of each minute that the new and the old revision have ended, and those that
met the objectives, while a revision is tried.
"""

from __future__ import annotations

from typing import Any

from disagg_router.workers.canary import Canary
from disagg_wire.canary import KEPT_MINUTES


class CanaryTally:
    """The counts of one router. They begin anew with each revision that is tried."""

    def __init__(self) -> None:
        self._name = ""
        self._minutes: dict[int, list[int]] = {}

    def count(self, canary: Canary, epoch_s: float, *, new: bool, met: bool) -> None:
        """Count a request that has ended."""
        if canary.name != self._name:
            self._name, self._minutes = canary.name, {}
        counts = self._minutes.setdefault(int(epoch_s // 60), [0, 0, 0, 0])
        first = 0 if new else 2
        counts[first] += 1
        counts[first + 1] += met
        while len(self._minutes) > KEPT_MINUTES:
            del self._minutes[min(self._minutes)]

    def to_json(self, canary: Canary | None) -> dict[str, Any] | None:
        """Return the counts for the operator: of each minute the requests of the new revision,
        those of them that met the objectives, and both of the old one.
        """
        if canary is None or not canary.name:
            return None
        minutes = self._minutes if canary.name == self._name else {}
        return {
            "revision": canary.name,
            "percent": canary.percent,
            "minutes": [[minute, *counts] for minute, counts in sorted(minutes.items())],
        }
