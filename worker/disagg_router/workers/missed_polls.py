"""PURE: The polls that workers have missed in a row."""

from __future__ import annotations

from collections.abc import Collection


class MissedPolls:
    """The number of polls that each listed worker has missed, when the last of them began, and when
    it last answered one.
    """

    def __init__(self) -> None:
        self._missed: dict[str, tuple[int, float]] = {}
        self._heard_s: dict[str, float] = {}

    def missed(self, name: str, began_s: float) -> tuple[int, float]:
        """Count one more, and return their number and when the one before it began."""
        times, since_s = self._missed.get(name, (0, began_s))
        self._missed[name] = times + 1, began_s
        return times + 1, since_s

    def answered(self, name: str, now_s: float) -> None:
        self._missed.pop(name, None)
        self._heard_s[name] = now_s

    def silent_s(self, name: str, now_s: float) -> float:
        """Return how long ago a worker answered; 0 for one that never has, since it may start."""
        return max(0.0, now_s - self._heard_s.get(name, now_s))

    def keep_only(self, names: Collection[str]) -> None:
        """Forget workers that are not listed any more."""
        self._missed = {name: missed for name, missed in self._missed.items() if name in names}
        self._heard_s = {name: heard_s for name, heard_s in self._heard_s.items() if name in names}
