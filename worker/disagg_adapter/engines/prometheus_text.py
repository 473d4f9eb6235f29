"""The samples of an engine's /metrics page, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = Mapping[str, str]
# A hundred times the page of an engine.
_MAX_PAGE_CHARS = 4 << 20
_MAX_LINES = 10_000


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a page."""

    by_name: Mapping[str, Sequence[tuple[Labels, float]]] = field(default_factory=dict)
    """The labels and the value of every sample, by its name."""

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels, NaN if there are none.

        An engine with several replicas of itself exposes one sample for each.
        """
        found = [value for has, value in self.by_name.get(name, ()) if labels.items() <= has.items()]
        return math.fsum(found) if found else math.nan

    def mean(self, name: str) -> float:
        """Return the mean of the samples, NaN if there are none."""
        found = [value for _, value in self.by_name.get(name, ())]
        return math.fsum(found) / len(found) if found else math.nan

    def labels(self, name: str) -> dict[str, str] | None:
        """Return the labels of the first sample, None if there is none."""
        found = self.by_name.get(name, ())
        return dict(found[0][0]) if found else None

    def by_label(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of the samples by the value of one label."""
        out: dict[str, float] = {}
        for has, value in self.by_name.get(name, ()):
            if label in has:
                out[has[label]] = out.get(has[label], 0.0) + value
        return out


def parse_samples(page: str) -> Samples:
    """Return the samples of a page in the text format of Prometheus, without buckets.

    The buckets of histograms are most of a page, and nobody here reads them. An infinite value
    counts as unknown. Raises ValueError if the page is garbled, or so long that reading it would
    hold up all streams.
    """
    out: dict[str, list[tuple[Labels, float]]] = {}
    if len(page) > _MAX_PAGE_CHARS:
        raise ValueError(f"the page is longer than {_MAX_PAGE_CHARS} characters")
    kept = [x for x in page.splitlines() if x and not x.startswith("#") and "_bucket{" not in x]
    if len(kept) > _MAX_LINES:
        raise ValueError(f"the page has more than {_MAX_LINES} samples")
    for family in text_string_to_metric_families("\n".join(kept) + "\n"):
        for sample in family.samples:
            value = float(sample.value)
            out.setdefault(sample.name, []).append((sample.labels, value if math.isfinite(value) else math.nan))
    return Samples(out)
