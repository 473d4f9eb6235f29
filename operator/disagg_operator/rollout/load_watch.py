"""PURE: Whether the workers of a rollout load their models on, by the bytes that they report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from disagg_operator.rollout.values import WorkersKey

_MOST_GROUPS = 16


@dataclass(frozen=True, slots=True)
class PodLoad:
    """One worker, and how much of its model it has loaded."""

    ready: bool
    loaded_bytes: int = 0


@dataclass(slots=True)
class _Group:
    whole_bytes: int = 0
    """The most that one worker has loaded."""
    best_bytes: int = 0
    """The most that all of them together had loaded."""
    moved_s: float | None = None
    """When that was reached."""


@dataclass(slots=True)
class LoadWatch:
    """The workers of each role and revision, and when they last had loaded more than ever before.

    What a worker loads again counts for nothing: one that is restarted or replaced over and over
    gets nowhere. The times are those of a monotonic clock.
    """

    _groups: dict[WorkersKey, _Group] = field(default_factory=dict)

    def look(self, pods: Mapping[WorkersKey, Iterable[PodLoad]], now_s: float) -> None:
        """Note what all workers have loaded by now."""
        for key, here in pods.items():
            group, loads = self._groups.pop(key, None) or _Group(), list(here)
            group.whole_bytes = max((group.whole_bytes, *(pod.loaded_bytes for pod in loads)))
            loaded = sum(group.whole_bytes if pod.ready else pod.loaded_bytes for pod in loads)
            if loaded > group.best_bytes:
                group.best_bytes, group.moved_s = loaded, now_s
            self._groups[key] = group
        for key in list(self._groups)[:-_MOST_GROUPS]:
            del self._groups[key]

    def moved_s(self, keys: Iterable[WorkersKey]) -> float | None:
        """Return when workers of one of these groups last got on; None if they never did."""
        times = [group.moved_s for key in keys if (group := self._groups.get(key)) is not None]
        return max((s for s in times if s is not None), default=None)
