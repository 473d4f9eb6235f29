"""Reads what engines of other projects told, from their pages and from a Prometheus."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from disagg_operator.autoscaling.signals.engine_fold import EngineReport
from disagg_operator.engines.contract import EngineMeter
from disagg_wire.engine_metrics.sample_table import Labels, Samples

# Of an engine with eight replicas of itself, some thousand lines are read.
_MOST_LINES, _MOST_SAMPLES = 100_000, 20_000
_Table = dict[str, list[tuple[Labels, float]]]


def report_of_page(metrics: EngineMeter, text: str, at_s: float) -> EngineReport | None:
    """Parse a page of /metrics.

    None if it cannot be read, holds none of these metrics, or is far too large.
    """
    if text.count("\n") > _MOST_LINES:
        return None
    wanted = frozenset(metrics.names)
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in wanted]
    if len(lines) > _MOST_SAMPLES:
        return None
    table: _Table = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                _put(table, sample.name, sample.labels, float(sample.value))
    except (ValueError, KeyError, IndexError):
        return None
    return EngineReport(at_s, metrics.readings_of(Samples(table))) if table else None


def reports_of_matrix(
    metrics: EngineMeter, answer: Iterable[Any], now_s: float, max_age_s: float
) -> dict[str, EngineReport]:
    """Return what each pod told last, from a range vector of Prometheus with labels `pod`.

    Series that are invalid or older than `max_age_s` are left out.
    """
    wanted = frozenset(metrics.names)
    newest: dict[str, float] = {}
    found: list[tuple[str, float, str, dict[str, str], float]] = []
    for series in answer:
        try:
            labels = {str(k): str(v) for k, v in series["metric"].items()}
            at_s, value = map(float, series["values"][-1])
            name, pod = labels.pop("__name__"), labels["pod"]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            continue
        if name in wanted:
            newest[pod] = max(newest.get(pod, 0.0), at_s)
            found.append((pod, at_s, name, labels, value))
    tables: dict[str, _Table] = {}
    for pod, then_s, name, kept, number in found:
        # All series of one scrape have the same time; an older series has ended.
        if then_s == newest[pod] and now_s - then_s <= max_age_s:
            _put(tables.setdefault(pod, {}), name, kept, number)
    return {pod: EngineReport(newest[pod], metrics.readings_of(Samples(table))) for pod, table in tables.items()}


def _put(table: _Table, name: str, labels: Labels, value: float) -> None:
    table.setdefault(name, []).append((labels, value if math.isfinite(value) else math.nan))
