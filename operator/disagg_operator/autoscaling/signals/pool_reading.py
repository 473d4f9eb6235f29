"""PURE: The samples as used by the policy `queue`: requests by pod, and those waiting in routers.

An absent value never means zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling.signals.samples import Sample
from disagg_wire import series

WORKER_WAITING = series.WORKER_WAITING_REQUESTS
WORKER_RUNNING = series.WORKER_RUNNING_REQUESTS
ROUTER_WAITING = series.ROUTER_WAITING_REQUESTS


@dataclass(frozen=True, slots=True)
class PoolReading:
    """The result of one look at one pool."""

    by_pod: Mapping[str, float]
    """Requests waiting and running, for each pod that answered."""
    router_waiting: float | None
    """Requests that wait in the routers for this pool; None unless all ready routers answered."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """The requests of a pool, and the pods and routers that did not answer."""

    requests: float | None
    silent_pods: int
    router_silent: bool


def loads(workers: Mapping[str, Sample | None]) -> dict[str, float]:
    """Return the number of requests that each pod holds, for the pods that answered."""
    found = {}
    for pod, sample in workers.items():
        requests = math.nan if sample is None else sample.get(WORKER_WAITING) + sample.get(WORKER_RUNNING)
        if not math.isnan(requests):
            found[pod] = requests
    return found


def reading(pool: str, workers: Mapping[str, Sample | None], routers: Mapping[str, Sample | None]) -> PoolReading:
    """Return the result of one look at one pool."""
    waiting = [math.nan if sample is None else sample.get(f"{ROUTER_WAITING}:{pool}") for sample in routers.values()]
    known = bool(waiting) and not any(map(math.isnan, waiting))
    return PoolReading(loads(workers), sum(waiting) if known else None)


def view(ready_pods: Iterable[str], reading: PoolReading | None) -> PoolView:
    """Fold a reading over the pods that should have answered.

    The requests are unknown (`requests=None`) if pods are ready and none answered, or if there is
    no pod and no router to ask.
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
