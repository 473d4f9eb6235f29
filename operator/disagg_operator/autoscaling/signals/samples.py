"""PURE: what one pod reported at one moment, by metric.

What is no finite number >= 0 is absent, and absent is never zero.

A metric with labels of our own has a name for each: `disagg_router_waiting_requests:decode`, label
values in the order of `READ_LABELS`.
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
    """Values by metric at time `at_s` (of the clock of whoever looked)."""

    at_s: float
    values: Mapping[str, float]

    def get(self, metric: str) -> float:
        """NaN when it is absent."""
        return self.values.get(metric, math.nan)


def flat(name: str, labels: Mapping[str, str]) -> str:
    return ":".join((name, *(labels[label] for label in READ_LABELS if label in labels)))


def add(values: dict[str, float], metric: str, value: float) -> None:
    if math.isfinite(value) and value >= 0:
        values[metric] = values.get(metric, 0.0) + value


def from_matrix(answer: Any, now_s: float, max_age_s: float) -> dict[str, Sample] | None:
    """A range vector of raw series with a `pod` label, as Prometheus answers it -> the last look at
    each pod. What is older than `max_age_s` is left out, as is what makes no sense; None for what
    is no matrix at all.
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
        # All series of one scrape have one time: an older one has ended.
        if at_s == newest[pod] and now_s - at_s <= max_age_s:
            add(values.setdefault(pod, {}), metric, value)
    return {pod: Sample(newest[pod], v) for pod, v in values.items() if v}


def _last_point(series: Any) -> tuple[str, str, float, float] | None:
    try:
        labels, (at_s, value) = series["metric"], series["values"][-1]
        name, pod = str(labels["__name__"]), str(labels["pod"])
        return (pod, flat(name, labels), float(at_s), float(value)) if name in WANTED else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def role_of(sample: Sample | None) -> str | None:
    """The role that a worker says it has."""
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
