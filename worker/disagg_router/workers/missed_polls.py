"""PURE: The polls that workers have missed in a row."""

from __future__ import annotations

from collections.abc import Collection


class MissedPolls:
    """The number of polls that each listed worker has missed, and when the last of them began."""

    def __init__(self) -> None:
        self._missed: dict[str, tuple[int, float]] = {}

    def missed(self, name: str, began_s: float) -> tuple[int, float]:
        """Count one more, and return their number and when the one before it began."""
        times, since_s = self._missed.get(name, (0, began_s))
        self._missed[name] = times + 1, began_s
        return times + 1, since_s

    def answered(self, name: str) -> None:
        self._missed.pop(name, None)

    def keep_only(self, names: Collection[str]) -> None:
        """Forget workers that are not listed any more."""
        self._missed = {name: missed for name, missed in self._missed.items() if name in names}
