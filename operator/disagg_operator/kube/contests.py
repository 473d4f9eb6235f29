"""PURE: Objects that somebody else changes again and again, and how often they are restored.

Two programs that each restore a field would otherwise write as fast as they are told of each
other's writes. The first restoration is immediate; each further one waits twice as long as the one
before, up to a minute. An object that was left alone for ten minutes starts anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_operator.vocabulary import FIELD_MANAGER, Obj

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
FORGOTTEN_AFTER_S = 600.0
# From then on it is told: a single edit by hand is no contest.
_TOLD_FROM = 3


@dataclass(slots=True)
class _Written:
    mark: str
    """The hash of the rendering that was written."""
    at_s: float
    restored: int = 0
    """How often the same rendering had to be written again."""


@dataclass(slots=True)
class Contests:
    """What was last written of each object, by (kind, name)."""

    _written: dict[tuple[str, str], _Written] = field(default_factory=dict)

    def has(self, which: tuple[str, str]) -> bool:
        """Return whether an object was restored lately."""
        last = self._written.get(which)
        return last is not None and last.restored > 0

    def wait_s(self, which: tuple[str, str], mark: str, now_s: float) -> float:
        """Return the seconds until a rendering may be written; 0 if it may be now."""
        last = self._written.get(which)
        if last is None or last.mark != mark or last.restored == 0:
            return 0.0
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(last.restored - 1, 30), LONGEST_PAUSE_S)
        return max(0.0, last.at_s + pause_s - now_s)

    def wrote(self, which: tuple[str, str], mark: str, now_s: float) -> None:
        """Note that a rendering was written."""
        last = self._written.get(which)
        again = last is not None and last.mark == mark and now_s - last.at_s < FORGOTTEN_AFTER_S
        self._written[which] = _Written(mark, now_s, last.restored + 1 if again and last is not None else 0)

    def told(self, which: tuple[str, str]) -> bool:
        """Return whether the contest about an object deserves a word."""
        last = self._written.get(which)
        return last is not None and last.restored >= _TOLD_FROM


def rival(live: Obj | None) -> str:
    """Return the name of the client that changed an object last, other than the operator."""
    entries = [] if live is None else live["metadata"].get("managedFields") or []
    others = [e for e in entries if e.get("manager") != FIELD_MANAGER and e.get("subresource") != "status"]
    latest: Obj = max(others, key=lambda e: str(e.get("time", "")), default={})
    return str(latest.get("manager", "another client"))[:63]
