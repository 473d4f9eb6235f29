"""PURE: The counts of a Prometheus histogram, and what can be said of its values.

Only the bucket of a value is known, so a percentile is an interval.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.planning.traffic import Lengths


@dataclass(frozen=True, slots=True)
class Between:
    """An interval in which a value is; `high` may be infinite."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BucketCounts:
    """The number of values in each bucket, and the sum of all values."""

    bounds: tuple[float, ...]
    """The upper bounds, in ascending order; the last one is infinite."""
    counts: tuple[float, ...]
    """The number of values in each bucket."""
    total: float
    """The sum of the values."""

    @property
    def count(self) -> float:
        """The number of values."""
        return math.fsum(self.counts)

    @property
    def mean(self) -> float:
        """The mean of the values, which is exact. There must be a value."""
        return self.total / self.count

    def percentile(self, share: float) -> Between:
        """Return the bucket of the percentile. There must be a value."""
        wanted, seen = share * self.count, 0.0
        for i, count in enumerate(self.counts):
            seen += count
            if count > 0 and seen >= wanted * (1 - 1e-12):
                return Between(self._low(i), self.bounds[i])
        last = max(i for i, count in enumerate(self.counts) if count > 0)
        return Between(self._low(last), self.bounds[last])

    def share_within(self, limit: float) -> Between:
        """Return the share of the values that do not exceed a limit. There must be a value."""
        at_least = math.fsum(c for bound, c in zip(self.bounds, self.counts, strict=True) if bound <= limit)
        exact = limit in self.bounds
        first = bisect_left(self.bounds, limit)
        at_most = at_least if exact or first == len(self.counts) else at_least + self.counts[first]
        return Between(at_least / self.count, at_most / self.count)

    def lengths(self, share: float) -> Lengths:
        """Return the moments of lengths, and their tail at a percentile. There must be a value.

        The mean is exact. The tail is the upper end of its bucket, which is on the safe side. In a
        bucket, the logarithm of the lengths is assumed to be uniformly distributed.
        """
        first = second = 0.0
        for i, count in enumerate(self.counts):
            low, high = max(1.0, self._low(i)), self._finite(i)
            ratio = math.log(high / low) if high > low else 0.0
            first += count * ((high - low) / ratio if ratio else high)
            second += count * ((high * high - low * low) / (2 * ratio) if ratio else high * high)
        estimated, mean = first / self.count, max(1.0, self.mean)
        spread = second / self.count / estimated**2  # at least 1, whatever the mean is
        tail = self._finite(self.bounds.index(self.percentile(share).high))
        return Lengths(mean, mean * mean * max(1.0, spread), max(mean, tail))

    def scaled(self, factor: float) -> BucketCounts:
        """Return the histogram of the values times a factor."""
        return BucketCounts(tuple(b * factor for b in self.bounds), self.counts, self.total * factor)

    def plus(self, other: BucketCounts) -> BucketCounts:
        """Return both together, by the bounds that both have."""
        if self.bounds == other.bounds:
            counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
            return BucketCounts(self.bounds, counts, self.total + other.total)
        both = sorted(set(self.bounds) & set(other.bounds))
        mine, others = self._cumulated(), other._cumulated()
        return of_cumulative({b: mine[b] + others[b] for b in both}, self.total + other.total)

    def minus(self, earlier: BucketCounts) -> BucketCounts | None:
        """Return what has come since then, or None if the counter began anew."""
        if self.bounds != earlier.bounds:
            return None
        counts = tuple(a - b for a, b in zip(self.counts, earlier.counts, strict=True))
        if min(counts) < 0 or self.total < earlier.total:
            return None
        return BucketCounts(self.bounds, counts, self.total - earlier.total)

    def _low(self, i: int) -> float:
        return self.bounds[i - 1] if i else 0.0

    def _finite(self, i: int) -> float:
        """Return the upper bound of a bucket; twice the lower one where there is none."""
        return self.bounds[i] if math.isfinite(self.bounds[i]) else max(1.0, 2 * self._low(i))

    def _cumulated(self) -> dict[float, float]:
        seen, found = 0.0, {}
        for bound, count in zip(self.bounds, self.counts, strict=True):
            seen += count
            found[bound] = seen
        return found


def of_cumulative(by_bound: Mapping[float, float], total: float) -> BucketCounts:
    """Return the histogram of counts at most each bound, as Prometheus shows them.

    Without an infinite bound, the values above the last one are missing. Rates of several pods may
    decrease by rounding: such a bucket is empty.
    """
    bounds = sorted(by_bound)
    if not bounds or math.isfinite(bounds[-1]):
        bounds.append(math.inf)
    counts, seen = [], 0.0
    for bound in bounds:
        now = max(seen, by_bound.get(bound, seen))
        counts.append(now - seen)
        seen = now
    return BucketCounts(tuple(bounds), tuple(counts), total)
