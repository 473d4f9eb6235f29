"""PURE: Sums of gauges and of increases of counters over the pods of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from disagg_operator.autoscaling.policy.observation import YOUNG_S
from disagg_operator.autoscaling.signals.samples import Sample

Answers = Mapping[str, Sample | None]  # by pod that should answer


class Before(Protocol):
    """The previous look, as far as it is needed here."""

    @property
    def samples(self) -> Mapping[str, Sample]:
        """The last sample of each pod."""

    @property
    def seen_s(self) -> Mapping[str, float]:
        """The time at which each pod first answered."""


class PoolSums:
    """Sums over the pods of one kind."""

    def __init__(self, answers: Answers, before: Before, interval_s: float, now_s: float) -> None:
        self._before = before
        self._interval_s = interval_s
        self._expected = len(answers)
        self._heard = {pod: sample for pod, sample in answers.items() if sample is not None}
        self._old = {pod: s for pod, s in self._heard.items() if now_s - before.seen_s.get(pod, now_s) >= YOUNG_S}

    @property
    def silent(self) -> bool:
        """Whether some pods did not answer."""
        return len(self._heard) < self._expected

    def gauge(self, metric: str) -> float:
        """Return the sum over all pods; the mean of those that answered stands for the others."""
        values = [v for s in self._heard.values() if not math.isnan(v := s.get(metric))]
        return self._for_all(values)

    def mean(self, metric: str) -> float:
        """Return the mean over all pods."""
        return self.gauge(metric) / self._expected if self._expected else math.nan

    def increase(self, metric: str) -> float:
        """Return the increase of a counter in the interval."""
        if math.isnan(self._interval_s):
            return math.nan
        values = [v for pod, s in self._heard.items() if not math.isnan(v := self._increase(pod, s, metric))]
        return self._for_all(values)

    def increase_of_old(self, *metrics: str) -> tuple[float, ...]:
        """Return the increases of counters over the same pods for all of them.

        Young pods are left out, and nothing stands for pods that did not answer.
        """
        if math.isnan(self._interval_s) or not self._old:
            return (math.nan,) * len(metrics)
        rows = [[self._increase(pod, s, m) for m in metrics] for pod, s in self._old.items()]
        rows = [row for row in rows if not any(map(math.isnan, row))]
        return tuple(map(sum, zip(*rows, strict=True))) if rows else (math.nan,) * len(metrics)

    def _increase(self, pod: str, sample: Sample, metric: str) -> float:
        now, before = sample.get(metric), self._before.samples.get(pod)
        if before is None:
            return math.nan if math.isnan(now) else 0.0  # counts from before the first look are not of this interval
        then, elapsed_s = before.get(metric), sample.at_s - before.at_s
        if math.isnan(now) or elapsed_s <= 0:
            return 0.0 if elapsed_s <= 0 and not math.isnan(now) else math.nan
        if metric in before.values and math.isnan(then):
            return math.nan  # the pod said that it did not know, so what it says now is of an unknown time
        # A series that was absent began with its first event.
        grown = now - then if now >= then else now
        return grown * min(1.0, self._interval_s / elapsed_s)

    def _for_all(self, values: list[float]) -> float:
        if not values:
            return 0.0 if self._expected == 0 else math.nan
        return sum(values) * self._expected / len(values)
