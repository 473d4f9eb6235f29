"""PURE: How long a rollout has waited, by the clock of this process alone.

Status and pods say since when something waits, in times of other machines and other processes, by
wall clocks that may be wrong or jump. What decides is for how long this process has seen it. One
that has just begun counts from zero.
"""

from __future__ import annotations

import datetime
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_operator.kube.pods import epoch_s
from disagg_operator.rollout.values import Progress, RolloutState, Workers
from disagg_operator.vocabulary import Obj


@dataclass(slots=True)
class SteadyTimes:
    """What a rollout waits for, and since when this process has seen it wait."""

    _seen_s: dict[Hashable, float] = field(default_factory=dict)
    """Monotonic times."""
    _tried: tuple[str, float] = ("", 0.0)
    """When the canary that is tried began, and the monotonic time of that."""

    def by_this_process(self, state: RolloutState, now_s: float) -> RolloutState:
        """Return the state with times as long ago as this process has seen them.

        `now_s` is the time of a monotonic clock.
        """
        waits = {w.key: (w.key, w.unschedulable_since_s) for w in state.workers if w.unschedulable_since_s is not None}
        before = state.progress
        marks: list[Hashable] = [*waits.values(), *([] if before is None else [_mark(before)])]
        self._seen_s = {mark: self._seen_s.get(mark, now_s) for mark in marks}

        def since_s(mark: Hashable) -> float:
            return state.now_s - (now_s - self._seen_s[mark])

        def seen(workers: Workers) -> Workers:
            mark = waits.get(workers.key)
            return workers if mark is None else replace(workers, unschedulable_since_s=since_s(mark))

        progress = None if before is None else replace(before, since_s=since_s(_mark(before)))
        return replace(state, workers=tuple(map(seen, state.workers)), progress=progress)

    def tried_for_s(self, since: str, now: str, now_s: float) -> float:
        """Return for how long a canary has been tried that began at `since`, in RFC 3339.

        The time until this process first sees it is that between two wall clocks, if there can be
        such a time.
        """
        if self._tried[0] != since:
            self._tried = since, now_s - max(0.0, epoch_s(now) - epoch_s(since))
        return now_s - self._tried[1]

    def to_store(
        self, before: Progress | None, seen: Progress | None, made: Progress | None, now_s: float
    ) -> Progress | None:
        """Return the progress for the status: what is as it was keeps the time that stands there.

        `before` is that of the status, `seen` what `by_this_process` made of it, and `made` the new
        one.
        """
        if before is not None and seen is not None and made is not None and _mark(made) == _mark(seen):
            return replace(made, since_s=before.since_s)
        if made is not None:
            self._seen_s[_mark(made)] = now_s
        return made


def _mark(progress: Progress) -> Hashable:
    return progress.target, progress.best, progress.since_s


def progress_of(resource: Obj) -> Progress | None:
    """Return the progress as it stands in the status of a resource, or None."""
    stored = (resource.get("status") or {}).get("rollout")
    if not isinstance(stored, dict):
        return None
    since_s = epoch_s(stored.get("lastProgressTime"))
    if since_s != since_s:
        return None
    held = {str(k): int(v) for k, v in (stored.get("held") or {}).items()}
    full = frozenset(str(k) for k in stored.get("full") or [] if k in held)
    return Progress(str(stored.get("target", "")), int(stored.get("steps") or 0), since_s, held, full)


def progress_status(progress: Progress | None) -> dict[str, Any] | None:
    """Return the progress as it stands in status, or None."""
    if progress is None:
        return None
    since = datetime.datetime.fromtimestamp(progress.since_s, datetime.UTC).isoformat(timespec="seconds")
    return {
        "target": progress.target,
        "steps": progress.best,
        "lastProgressTime": since.replace("+00:00", "Z"),
        "held": {k: n for k, n in sorted(progress.held.items()) if n},
        "full": sorted(progress.full),
    }
