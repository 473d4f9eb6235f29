"""Timing on the device: the median of repeats between events, after a warm-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_WARM_UP, _BUDGET_S = 3, 1.0


def seconds(work: Callable[[], object], device: torch.device, repeats: int = 20) -> float:
    """Return the median of at most `repeats` runs that take no longer than about a second
    together.
    """
    for _ in range(_WARM_UP):
        work()
    times: list[float] = []
    started_s = time.perf_counter()
    while len(times) < repeats and (len(times) < 3 or time.perf_counter() - started_s < _BUDGET_S):
        times.append(_once(work, device))
    return statistics.median(times)


def _once(work: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started_s = time.perf_counter()
        work()
        return time.perf_counter() - started_s
    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3
