"""PURE: The workload of what runs today: lengths, rate by hour, bursts, and prefix share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disagg_operator.planning.assessment.bucket_counts import Between, BucketCounts
from disagg_operator.planning.assessment.readings import Readings
from disagg_operator.planning.traffic import Lengths, Traffic, of_samples

_PEAK_S = 300.0
_HOUR_S = 3600.0
_DAY_HOURS = 24
# The rate by hour is told from two hours on.
_LEAST_HOURS_S = 2 * _HOUR_S
# Bursts are what varies within a minute; what varies beyond is the day's shape.
_MINUTE_S = 60.0
_LEAST_MINUTES = 0.5


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """The lengths of prompts or answers in tokens."""

    mean: float
    median: Between
    tail: Between
    """The length at the percentile of the objectives."""


@dataclass(frozen=True, slots=True)
class Hour:
    """The request rate of an hour of the day."""

    hour: int
    mean_per_s: float
    busiest_per_s: float
    """The rate of its busiest five minutes, or of the shortest time that was read."""


@dataclass(frozen=True, slots=True)
class RequestLoad:
    """The requests of what runs today."""

    requests: float
    span_s: float
    busiest_per_s: float
    """The rate of the busiest five minutes, or of all the time if it was shorter."""
    prompt: LengthSummary
    answer: LengthSummary
    cached_share: float
    """The share of the prompt tokens that a prefix cache held."""
    bursts: float | None
    """The variance of the requests of a second over their mean, within a minute; None: not seen.

    It is 1 for independent arrivals, and more in bursts.
    """
    hours: tuple[Hour, ...]
    clock: bool
    """Whether hours are those of the clock (UTC), or count from the beginning."""
    planned_prompt: Lengths
    """The uncached tokens of prompts, with upper ends of intervals."""
    planned_answer: Lengths
    least_prompt: Lengths
    """The same with the lower ends of the tails."""
    least_answer: Lengths

    @property
    def mean_per_s(self) -> float:
        """The mean request rate."""
        return self.requests / max(self.span_s, 1.0)

    @property
    def is_exact(self) -> bool:
        """Whether the lengths of single requests are known."""
        return self.prompt.tail.low == self.prompt.tail.high

    def traffic(self, per_s: float | None = None, *, least: bool = False) -> Traffic:
        """Return the traffic to plan for, at the busiest five minutes if no rate is given."""
        lengths = (self.least_prompt, self.least_answer) if least else (self.planned_prompt, self.planned_answer)
        return Traffic(per_s or self.busiest_per_s, *lengths)


def of_readings(r: Readings, percentile: float) -> RequestLoad:
    """Return the workload of engines that were read."""
    prompt, answer = r.histograms["prompt_lengths"], r.histograms["answer_lengths"]
    share = min(1.0, r.cached_tokens / r.prompt_tokens) if r.prompt_tokens > 0 else 0.0
    computed = r.histograms.get("computed_lengths")
    if computed is None or computed.count <= 0:
        computed = prompt.scaled(1 - share) if share < 1 else prompt
    requests = sum(n for _, _, n in r.arrivals)
    return RequestLoad(
        requests,
        r.span_s,
        _busiest(r.arrivals, r.span_s),
        _summary(prompt, percentile),
        _summary(answer, percentile),
        share,
        _bursts_of_parts(r.arrivals),
        _hours(r.arrivals, r.span_s),
        r.clock,
        computed.lengths(percentile),
        answer.lengths(percentile),
        _lower(computed, percentile),
        _lower(answer, percentile),
    )


def of_requests(arrival_s: Any, prompt: Any, cached: Any, answer: Any, percentile: float) -> RequestLoad:
    """Return the workload of a log of requests, whose columns are arrays. There must be one."""
    span_s = max(1.0, float(arrival_s[-1]))
    counts = np.bincount(arrival_s.astype(int))
    parts = [(second + 1.0, 1.0, float(n)) for second, n in enumerate(counts)]
    work = of_samples(np.maximum(prompt - cached, 1).tolist(), percentile)
    answers = of_samples(answer.tolist(), percentile)
    return RequestLoad(
        float(len(arrival_s)),
        span_s,
        _busiest(parts, span_s),
        _exact(prompt.tolist(), percentile),
        _exact(answer.tolist(), percentile),
        float(cached.sum() / prompt.sum()),
        _bursts_of_parts(parts),
        _hours(parts, span_s),
        False,
        work,
        answers,
        work,
        answers,
    )


def _summary(found: BucketCounts, percentile: float) -> LengthSummary:
    return LengthSummary(found.mean, found.percentile(0.5), found.percentile(percentile))


def _exact(values: Sequence[float], percentile: float) -> LengthSummary:
    median, tail = (of_samples(values, share).tail for share in (0.5, percentile))
    return LengthSummary(sum(values) / len(values), Between(median, median), Between(tail, tail))


def _lower(found: BucketCounts, percentile: float) -> Lengths:
    upper = found.lengths(percentile)
    return Lengths(upper.mean, upper.second_moment, max(upper.mean, found.percentile(percentile).low))


def _binned(parts: Sequence[tuple[float, float, float]], width_s: float) -> dict[int, tuple[float, float]]:
    """Return the seconds and the requests of each bin."""
    found: dict[int, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for end_s, seconds, requests in parts:
        number = math.floor((end_s - seconds / 2) / width_s)
        known = found[number]
        found[number] = known[0] + seconds, known[1] + requests
    return found


def _busiest(parts: Sequence[tuple[float, float, float]], span_s: float) -> float:
    """Return the highest rate of five minutes of which at least half were seen."""
    mean = sum(n for _, _, n in parts) / max(span_s, 1.0)
    if span_s <= _PEAK_S:
        return mean
    bins = _binned(parts, _PEAK_S).values()
    return max((n / seconds for seconds, n in bins if seconds >= _PEAK_S / 2), default=mean)


def _hours(parts: Sequence[tuple[float, float, float]], span_s: float) -> tuple[Hour, ...]:
    if span_s < _LEAST_HOURS_S:
        return ()
    by_hour: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for number, (seconds, requests) in _binned(parts, _PEAK_S).items():
        by_hour[int(number * _PEAK_S // _HOUR_S) % _DAY_HOURS].append((seconds, requests))
    return tuple(
        Hour(hour, sum(n for _, n in found) / sum(s for s, _ in found), max(n / s for s, n in found))
        for hour, found in sorted(by_hour.items())
    )


def _bursts_of_parts(parts: Sequence[tuple[float, float, float]]) -> float | None:
    """Return the dispersion of the requests of parts of about a second, or None."""
    if not parts or float(np.median([seconds for _, seconds, _ in parts])) > 2.0:
        return None
    minutes: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for end_s, seconds, requests in parts:
        minutes[math.floor((end_s - seconds / 2) / _MINUTE_S)].append((seconds, requests))
    variance = expected = 0.0
    for found in minutes.values():
        seconds, requests = sum(s for s, _ in found), sum(n for _, n in found)
        if seconds < _LEAST_MINUTES * _MINUTE_S or requests == 0:
            continue
        rate = requests / seconds
        # One degree of freedom goes into the rate.
        variance += sum((n - rate * s) ** 2 for s, n in found) * len(found) / max(1, len(found) - 1)
        expected += requests
    return variance / expected if expected > 0 else None
