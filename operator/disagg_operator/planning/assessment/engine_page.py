"""Parses an engine's own /metrics into snapshots, with the parser of prometheus_client."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from prometheus_client.parser import text_string_to_metric_families

from disagg_operator.engines import BY_NAME
from disagg_operator.planning.assessment.bucket_counts import BucketCounts, of_cumulative
from disagg_operator.planning.assessment.readings import HISTOGRAMS, AssessError, Snapshot, quantities
from disagg_wire.engine_metrics.engine_series import EngineSeries
from disagg_wire.engine_metrics.sample_table import is_copy, selected

_MOST_LINES = 20_000
# The parser's time grows with the square of a line's length.
_LONGEST_LINE = 2048
_PARTS = ("_bucket", "_sum", "_count")
ASSESSED = {engine.name: engine.meter.series for engine in BY_NAME.values() if engine.meter is not None}
"""The series of the engines that can be read, by the name of the engine."""

Values = dict[str, dict[tuple[str, str], float]]


def engine_of(text: str) -> str | None:
    """Return the name of the engine whose series a page holds, or None."""
    for engine, series in ASSESSED.items():
        if any(line.startswith(series.prefix) for line in text.splitlines()):
            return engine
    return None


def parse(text: str, series: EngineSeries, at_s: float) -> dict[str, Snapshot]:
    """Return the snapshot of each worker of a page, by the label that tells workers apart.

    Raises AssessError for a page that no engine writes.
    """
    names = quantities(series)
    bases = {selected(name)[0] for found in names.values() for name in found}
    wanted = bases | {base + part for base in bases for part in _PARTS}
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in wanted]
    if len(lines) > _MOST_LINES:
        raise AssessError(f"its metrics have {len(lines):,} lines, {_MOST_LINES:,} at most are read")
    if any(len(line) > _LONGEST_LINE for line in lines):
        raise AssessError(f"its metrics have a line of more than {_LONGEST_LINE:,} characters")
    workers: dict[str, Values] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    models: dict[str, str] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if is_copy(sample.labels, series.copies):
                    continue
                worker = sample.labels.get(series.workers, "")
                models[worker] = sample.labels.get("model_name", models.get(worker, ""))
                for selector in _selected(sample.name, sample.labels, names):
                    workers[worker][selector][(sample.name, sample.labels.get("le", ""))] += float(sample.value)
        return {
            worker: Snapshot(at_s, *_quantities(values, names), model=models[worker])
            for worker, values in workers.items()
        }
    except (ValueError, KeyError, IndexError) as error:
        raise AssessError(f"its metrics cannot be parsed: {error}") from None


def _selected(name: str, labels: Mapping[str, str], names: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the selectors, of those that are wanted, that a series matches."""
    found = []
    for selector in (s for selectors in names.values() for s in selectors):
        base, asked = selected(selector)
        fits = name == base or name.removeprefix(base) in _PARTS
        if fits and asked.items() <= labels.items() and selector not in found:
            found.append(selector)
    return found


def _quantities(
    values: Values, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, float], dict[str, BucketCounts]]:
    numbers: dict[str, float] = {}
    histograms: dict[str, BucketCounts] = {}
    for quantity, selectors in names.items():
        selector = next((s for s in selectors if s in values), None)
        if selector is None:
            continue
        told, base = values[selector], selected(selector)[0]
        if quantity not in HISTOGRAMS:
            numbers[quantity] = sum(value for (name, _), value in told.items() if name == base)
            continue
        buckets = {float(le): value for (name, le), value in told.items() if name == f"{base}_bucket"}
        if any(math.isnan(bound) or not math.isfinite(count) for bound, count in buckets.items()):
            raise ValueError(f"a bucket of {base} holds no number")
        total = told.get((f"{base}_sum", ""), math.nan)
        if buckets and math.isfinite(total):
            histograms[quantity] = of_cumulative(buckets, total)
    return numbers, histograms
