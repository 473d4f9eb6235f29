"""PURE: The samples of one pod at one moment, by metric.

A value that is not a finite number >= 0 is NaN: the pod says that it cannot know it. A metric that
is absent is not known either, and neither ever means zero. A metric with labels of our own has one
name for each combination, such as `disagg_router_waiting_requests:decode`, with label values in the
order of `READ_LABELS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_wire.series import READ_LABELS, READ_OF_ROUTERS, READ_OF_WORKERS, WORKER_INFO

WANTED = frozenset((*READ_OF_ROUTERS, *READ_OF_WORKERS))
_ROLE_PREFIX = f"{WORKER_INFO}:"


@dataclass(frozen=True, slots=True)
class Sample:
    """Values by metric at the time `at_s`, on the clock of the reader."""

    at_s: float
    values: Mapping[str, float]

    def get(self, metric: str) -> float:
        """Return the value of a metric, or NaN if it is not known."""
        return self.values.get(metric, math.nan)


def flat(name: str, labels: Mapping[str, str]) -> str:
    """Return the name of a metric with its label values."""
    return ":".join((name, *(labels[label] for label in READ_LABELS if label in labels)))


def add(values: dict[str, float], metric: str, value: float) -> None:
    """Add a value to a metric.

    A value that is not a finite number >= 0 makes the whole metric unknown.
    """
    known = math.isfinite(value) and value >= 0
    values[metric] = values.get(metric, 0.0) + value if known else math.nan


def from_matrix(answer: Any, now_s: float, max_age_s: float) -> dict[str, Sample] | None:
    """Return the last sample of each pod from a range vector of Prometheus.

    The series are raw and need a label `pod`. Series that are invalid or older than `max_age_s` are
    left out. Returns None if the answer is not a matrix at all.
    """
    if not isinstance(answer, list):
        return None
    newest: dict[str, float] = {}
    found: list[tuple[str, str, float, float]] = []
    for series in answer:
        if (point := _last_point(series)) is None:
            continue
        pod, metric, at_s, value = point
        newest[pod] = max(newest.get(pod, 0.0), at_s)
        found.append(point)
    values: dict[str, dict[str, float]] = {}
    for pod, metric, at_s, value in found:
        # All series of one scrape have the same time; an older series has ended.
        if at_s == newest[pod] and now_s - at_s <= max_age_s:
            add(values.setdefault(pod, {}), metric, value)
    return {pod: Sample(newest[pod], v) for pod, v in values.items()}


def _last_point(series: Any) -> tuple[str, str, float, float] | None:
    try:
        labels, (at_s, value) = series["metric"], series["values"][-1]
        name, pod = str(labels["__name__"]), str(labels["pod"])
        return (pod, flat(name, labels), float(at_s), float(value)) if name in WANTED else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def role_of(sample: Sample | None) -> str | None:
    """Return the role that a worker reports, or None."""
    if sample is None:
        return None
    return next(
        (
            m.removeprefix(_ROLE_PREFIX)
            for m, value in sample.values.items()
            if m.startswith(_ROLE_PREFIX) and value > 0
        ),
        None,
    )
