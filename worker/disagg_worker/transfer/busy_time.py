"""PURE: How long a link was in use, of transfers that overlap and are told of when they end."""

from __future__ import annotations

# A transfer that is longer than all that is remembered counts a little less than it took.
_MOST = 64


class BusyTime:
    """The last intervals in which something was moved, none of which overlap."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def note(self, began_s: float, ended_s: float) -> float:
        """Add an interval, and return how many of its seconds were none of another's."""
        left_s, span = max(0.0, ended_s - began_s), (began_s, max(began_s, ended_s))
        kept: list[tuple[float, float]] = []
        for start_s, end_s in self._spans:
            if end_s < span[0] or start_s > span[1]:
                kept.append((start_s, end_s))
                continue
            left_s -= max(0.0, min(end_s, ended_s) - max(start_s, began_s))
            span = min(start_s, span[0]), max(end_s, span[1])
        self._spans = sorted([*kept, span])[-_MOST:]
        return max(0.0, left_s)
