"""PURE: what one pod reported at one moment, by metric. What is no finite number >= 0 is absent, and absent is never zero.

A metric with labels of our own has a name for each: `disagg_router_waiting_requests:decode`, label values in the order of `LABELS`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

# The labels that tell our series apart; what a scraper adds (job, instance, namespace, ...) is not among them.
LABELS = ("objective", "within", "part", "kind", "pool", "role")
ROUTER_METRICS = (
    "disagg_router_waiting_requests", "disagg_router_arrivals_total", "disagg_router_arrived_prompt_tokens_total",
    "disagg_router_arrived_prompt_tokens_squared_total", "disagg_router_prefilled_tokens_total",
    "disagg_router_prefilled_tokens_squared_total", "disagg_router_objective_requests_total", "disagg_router_completions_total",
    "disagg_router_completed_tokens_total",
)  # fmt: skip
WORKER_METRICS = (
    "disagg_worker_waiting_requests", "disagg_worker_waiting_tokens", "disagg_worker_running_requests", "disagg_worker_kv_tokens",
    "disagg_worker_kv_capacity_tokens", "disagg_worker_generated_tokens_total",
    "disagg_worker_prefill_batches_total", "disagg_worker_prefill_batch_tokens_total",
    "disagg_worker_prefill_batch_tokens_squared_total", "disagg_worker_prefill_batch_seconds_total",
    "disagg_worker_decode_steps_total", "disagg_worker_decode_step_sequences_total", "disagg_worker_decode_step_kv_tokens_total",
    "disagg_worker_decode_step_seconds_total", "disagg_worker_info", "disagg_prefill_batch_limit_tokens",
    "disagg_prefill_batch_most_tokens",
)  # fmt: skip
_WANTED = frozenset((*ROUTER_METRICS, *WORKER_METRICS))


@dataclass(frozen=True, slots=True)
class Sample:
    """Values by metric at time `at_s` (of the clock of whoever looked)."""

    at_s: float
    values: Mapping[str, float]

    def get(self, metric: str) -> float:
        """NaN when it is absent."""
        return self.values.get(metric, math.nan)


def flat(name: str, labels: Mapping[str, str]) -> str:
    return ":".join((name, *(labels[label] for label in LABELS if label in labels)))


def parse(text: str, at_s: float) -> Sample | None:
    """One page of /metrics; None when it can't be read or holds nothing of ours."""
    lines = [line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] in _WANTED]
    values: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                add(values, flat(sample.name, sample.labels), float(sample.value))
    except (ValueError, KeyError, IndexError):
        return None
    return Sample(at_s, values) if values else None


def add(values: dict[str, float], metric: str, value: float) -> None:
    if math.isfinite(value) and value >= 0:
        values[metric] = values.get(metric, 0.0) + value


def from_matrix(answer: Any, now_s: float, max_age_s: float) -> dict[str, Sample] | None:
    """A range vector of raw series with a `pod` label, as Prometheus answers it -> the last look at each pod. What is older than
    `max_age_s` is left out, as is what makes no sense; None for what is no matrix at all."""
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
        return (pod, flat(name, labels), float(at_s), float(value)) if name in _WANTED else None
    except (KeyError, IndexError, TypeError, ValueError):
        return None
