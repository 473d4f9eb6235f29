"""PURE: texts and answers to numbers. Whatever isn't a finite number counts as absent, and absent is never zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

WORKER_WAITING = "disagg_worker_waiting_requests"
WORKER_RUNNING = "disagg_worker_running_requests"
ROUTER_WAITING = "disagg_router_waiting_requests"


@dataclass(frozen=True, slots=True)
class PoolReading:
    """What one look at one pool gave. `by_pod`: requests waiting and running, for each pod that answered.

    `router_waiting`: requests that wait in the routers for this pool; None when not every ready router answered.
    """

    by_pod: Mapping[str, float]
    router_waiting: float | None


@dataclass(frozen=True, slots=True)
class PoolView:
    """Which pods of a pool should answer, and what did."""

    requests: float | None
    silent_pods: int
    router_silent: bool


def view(ready_pods: Iterable[str], reading: PoolReading | None) -> PoolView:
    """Fold a reading over the pods that should have answered.

    Nothing is known (`requests=None`) when pods are ready and none answered, or when there is no pod and no router to ask.
    """
    ready = set(ready_pods)
    if reading is None:
        return PoolView(None, len(ready), True)
    heard = {pod: n for pod, n in reading.by_pod.items() if pod in ready}
    silent = len(ready) - len(heard)
    router_silent = reading.router_waiting is None
    if (ready and not heard) or (not ready and router_silent):
        return PoolView(None, silent, router_silent)
    return PoolView(sum(heard.values()) + (reading.router_waiting or 0.0), silent, router_silent)


def worker_requests(text: str) -> float | None:
    """Waiting plus running requests of one worker's /metrics; None when either is missing or not a number."""
    found = _values(text, {WORKER_WAITING, WORKER_RUNNING})
    if len(found) != 2:
        return None
    return sum(value for samples in found.values() for _, value in samples)


def router_waiting(text: str) -> dict[str, float] | None:
    """Requests that wait in one router, by pool; None when the gauge is missing. A pool not named has none waiting."""
    found = _values(text, {ROUTER_WAITING}).get(ROUTER_WAITING)
    if found is None:
        return None
    totals: dict[str, float] = {"prefill": 0.0, "decode": 0.0}
    for labels, value in found:
        pool = labels.get("pool", "")
        if pool in totals:
            totals[pool] += value
    return totals


def _values(text: str, names: set[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name. A name with any value that is no finite number >= 0 is left out; broken text gives {}."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    bad: set[str] = set()
    try:
        for family in text_string_to_metric_families(text):
            if family.name not in names:
                continue
            for sample in family.samples:
                value = float(sample.value)
                if not math.isfinite(value) or value < 0:
                    bad.add(family.name)
                found.setdefault(family.name, []).append((dict(sample.labels), value))
    except (ValueError, KeyError, IndexError):
        return {}
    return {name: samples for name, samples in found.items() if name not in bad}


def vector_by_pod(answer: Any) -> dict[str, float] | None:
    """An instant vector with a `pod` label as {pod: value}; NaN and malformed elements are left out; None for no vector."""
    if not isinstance(answer, list):
        return None
    out: dict[str, float] = {}
    for element in answer:
        value = _element_value(element)
        if value is not None and isinstance(element.get("metric"), dict):
            out[str(element["metric"].get("pod", ""))] = value
    return out


def vector_single(answer: Any) -> float | None:
    """The value of an instant vector of exactly one element; None for an empty one (which is not zero) or NaN."""
    if not isinstance(answer, list) or len(answer) != 1:
        return None
    return _element_value(answer[0])


def _element_value(element: Any) -> float | None:
    if not isinstance(element, dict):
        return None
    pair = element.get("value")
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    try:
        value = float(pair[1])
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None
