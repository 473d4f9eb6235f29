"""PURE: The samples of an engine's metrics at one time, by name, and its histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Labels = Mapping[str, str]
_BUCKET = "_bucket"
_UPPER = "le"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram since the engine's start, summed over all label sets."""

    bounds: tuple[float, ...] = ()
    """The upper bounds of the buckets, ascending; the last one is infinite."""
    counts: tuple[float, ...] = ()
    """The observations in each bucket alone."""
    total: float = math.nan
    """The sum of the observations."""

    @property
    def number(self) -> float:
        """The number of observations, NaN if there is no such histogram."""
        return math.fsum(self.counts) if self.bounds else math.nan

    def within(self, limit: float) -> float:
        """Return how many observations were at most `limit`, evenly spread within their bucket.

        Nothing in the last bucket counts, because nobody knows how large it was.
        """
        found, low = 0.0, 0.0
        for high, count in zip(self.bounds, self.counts, strict=True):
            if high <= limit:
                found += count
            elif low < limit and math.isfinite(high):
                found += count * (limit - low) / (high - low)
            low = high
        return found if self.bounds else math.nan

    def estimated_sums(self) -> tuple[float, float]:
        """Return the sum and the sum of squares that the buckets alone tell.

        Both only grow. In the last bucket, observations are taken as half as large again as its
        lower bound.
        """
        first = second = low = 0.0
        for high, count in zip(self.bounds, self.counts, strict=True):
            if math.isinf(high):
                high = low * 2.0
            first += count * (low + high) / 2
            second += count * (low * low + low * high + high * high) / 3
            low = high
        return (first, second) if self.bounds else (math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a page."""

    by_name: Mapping[str, Sequence[tuple[Labels, float]]] = field(default_factory=dict)
    """The labels and the value of every sample, by its name."""

    copies: tuple[str, ...] = ()
    """Labels of samples that repeat those of rank 0, which alone count."""

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels, NaN if there are none.

        An engine with several replicas of itself exposes one sample for each.
        """
        found = [value for has, value in self._rows(name) if labels.items() <= has.items()]
        return math.fsum(found) if found else math.nan

    def first(self, selectors: Sequence[str], part: str = "") -> float:
        """Return the value of the first of these selectors that there is, NaN if there is none.

        `part` is the end of the name, such as that of the sum of a histogram.
        """
        found = (self.value(f"{name}{part}", **labels) for name, labels in map(selected, selectors))
        return next((value for value in found if not math.isnan(value)), math.nan)

    def mean(self, *names: str) -> float:
        """Return the mean of the samples of the first of these names that has any, else NaN."""
        found = next(filter(None, map(self._rows, names)), ())
        return math.fsum(value for _, value in found) / len(found) if found else math.nan

    def labels(self, name: str) -> dict[str, str] | None:
        """Return the labels of the first sample, None if there is none."""
        found = self._rows(name)
        return dict(found[0][0]) if found else None

    def process_start(self) -> str:
        """Return when the process began, as every Python process tells; no two share it."""
        return f"{self.value('process_start_time_seconds'):.2f}"

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of the samples by the value of one label."""
        out: dict[str, float] = {}
        for has, value in self._rows(name):
            if label in has:
                out[has[label]] = out.get(has[label], 0.0) + value
        return out

    def _rows(self, name: str) -> Sequence[tuple[Labels, float]]:
        found = self.by_name.get(name, ())
        return [row for row in found if not is_copy(row[0], self.copies)] if self.copies else found

    def distribution(self, *names: str) -> Distribution:
        """Return the first of these histograms that there is, an empty one if there is none."""
        for name in names:
            found = self._distribution(name)
            if found.bounds:
                return found
        return Distribution()

    def _distribution(self, name: str) -> Distribution:
        total = self.value(f"{name}_sum")
        cumulative: dict[float, float] = {}
        for text, value in self.by_label(f"{name}{_BUCKET}", _UPPER).items():
            try:
                bound = float(text)
            except ValueError:
                continue
            if not math.isnan(bound) and value >= 0:
                cumulative[bound] = value
        bounds = tuple(sorted(cumulative))
        if not bounds or math.isfinite(bounds[-1]):
            return Distribution()
        below = (0.0, *(cumulative[bound] for bound in bounds[:-1]))
        counts = tuple(max(0.0, cumulative[bound] - under) for bound, under in zip(bounds, below, strict=True))
        return Distribution(bounds, counts, total)


def is_copy(labels: Labels, copies: Sequence[str]) -> bool:
    """Return whether a sample with these labels repeats that of rank 0."""
    return any(labels.get(label, "0") != "0" for label in copies)


def selected(selector: str) -> tuple[str, dict[str, str]]:
    """Return the name of a selector such as `a{b="c"}`, and the label that it asks for, if any."""
    name, _, rest = selector.partition("{")
    label, _, text = rest.rstrip("}").partition("=")
    return name, {label: text.strip('"')} if label else {}


class _Asked(dict[str, Any]):
    """A table without samples that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, None] = {}

    def get(self, name: str, default: Any = None) -> Any:
        self.names[name] = None
        return default

    def __getitem__(self, name: str) -> Any:
        self.names[name] = None
        raise KeyError(name)


def names_read(read: Callable[[Samples], object]) -> tuple[str, ...]:
    """Return the names of all samples that a reader asks for, sorted.

    They are found by asking it, so that no list of them must be kept beside the reader.
    """
    asked = _Asked()
    read(Samples(asked))
    return tuple(sorted(asked.names))
