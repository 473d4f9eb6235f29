"""PURE: Whether the computation of prompts delays the tokens of other requests on the same worker.

Each worker is compared with itself: its windows are grouped by the number of requests that ran, and
in each group the half with more computed prompt tokens is compared with the other half. What a
larger batch costs is therefore in both halves.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from disagg_operator.planning.assessment.readings import Readings, WatchWindow

Verdict = Literal["yes", "no", "unknown"]
_GROUPS = 4
_LEAST_OF_GROUP = 8
_LEAST_WINDOWS = 12
_LEAST_GAPS = 5
# Without such a contrast in the computed prompt tokens, nothing can be compared.
_CONTRAST = 1.5
# By chance, one of a thousand comparisons is that far off.
_SURE = 3.0
_NOTABLE = 1.1


@dataclass(frozen=True, slots=True)
class Half:
    """The windows in which more, or fewer, prompt tokens were computed."""

    windows: int
    computed_per_s: float
    running: float
    gap_s: float
    """The mean seconds between two tokens."""
    late_share: float
    """The share of gaps that were late."""


@dataclass(frozen=True, slots=True)
class Interference:
    """Whether prefill disturbs decode."""

    verdict: Verdict
    why: str
    """What is missing for a verdict, or ""."""
    late_s: float
    quiet: Half | None = None
    busy: Half | None = None


def judge(r: Readings, late_share: float) -> Interference:
    """Compare busy and quiet windows.

    Prefill disturbs decode if the gaps are longer by a tenth or more, or late more often by
    `late_share`, and chance does not explain it.
    """
    usable = [
        w for w in r.windows if w.gaps >= _LEAST_GAPS and math.isfinite(w.computed_tokens) and math.isfinite(w.running)
    ]
    if not r.windows or not math.isfinite(r.late_s):
        return Interference("unknown", "the times of tokens are not known", r.late_s)
    quiet, busy, differences = _halves(usable)
    if len(differences) < _LEAST_WINDOWS:
        found = f"{len(differences)} of {len(r.windows)} looks can be compared, {_LEAST_WINDOWS} are needed"
        return Interference("unknown", f"too little was seen: {found}", r.late_s)
    less, more = _half(quiet), _half(busy)
    if more.computed_per_s < _CONTRAST * less.computed_per_s:
        return Interference("unknown", "as many prompt tokens were computed at all times", r.late_s, less, more)
    longer = more.gap_s >= _NOTABLE * less.gap_s
    later = more.late_share >= less.late_share + late_share
    error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    sure = float(np.mean(differences)) > _SURE * error
    return Interference("yes" if sure and (longer or later) else "no", "", r.late_s, less, more)


def _halves(windows: Iterable[WatchWindow]) -> tuple[list[WatchWindow], list[WatchWindow], list[float]]:
    """Return the quiet and the busy windows, and how far the gaps of pairs of them differ.

    A pair are windows of one worker with about as many running requests.
    """
    by_worker: dict[str, list[WatchWindow]] = defaultdict(list)
    for w in windows:
        by_worker[w.worker].append(w)
    quiet: list[WatchWindow] = []
    busy: list[WatchWindow] = []
    differences: list[float] = []
    for found in by_worker.values():
        found.sort(key=lambda w: w.running)
        groups = max(1, min(_GROUPS, len(found) // _LEAST_OF_GROUP))
        for number in range(groups):
            group = found[number * len(found) // groups : (number + 1) * len(found) // groups]
            group.sort(key=lambda w: w.computed_tokens / w.seconds)
            half = len(group) // 2
            lower, upper = group[:half], group[len(group) - half :]
            quiet += lower
            busy += upper
            differences += [math.log(_gap_s(b) / _gap_s(a)) for a, b in zip(lower, upper, strict=True)]
    return quiet, busy, differences


def _gap_s(w: WatchWindow) -> float:
    return max(w.gaps_s, 1e-9) / w.gaps


def _half(windows: Sequence[WatchWindow]) -> Half:
    gaps = sum(w.gaps for w in windows)
    seconds = sum(w.seconds for w in windows)
    return Half(
        len(windows),
        sum(w.computed_tokens for w in windows) / seconds,
        sum(w.running * w.seconds for w in windows) / seconds,
        sum(w.gaps_s for w in windows) / gaps,
        sum(w.late for w in windows) / gaps,
    )
