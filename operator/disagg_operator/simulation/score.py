"""The figures by which a simulated run is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from disagg_operator.simulation.cluster import Cluster
from disagg_operator.simulation.columns import DONE, DROPPED, KILLED

_WINDOW_S = 300.0


@dataclass(frozen=True, slots=True)
class Score:
    """The figures of one run; shares are from 0 to 1.

    A request attains if its TTFT and its TPOT are within the objectives; dropped and killed ones
    never do.
    """

    gpu_hours: float  # paid, from each worker's creation to its end
    attainment: float  # share of the scored requests that attain
    ttft_attainment: float  # share that attain by their TTFT
    tpot_attainment: float  # share that attain by their TPOT
    windows_below: float  # share of 5-minute windows with less than 95 % attainment
    worst_window: float  # attainment of the worst 5-minute window
    ttft_p50_s: float  # of the scored requests that were served, as the next three
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    actions: int  # decisions that changed the size of a pool
    starts: int  # workers created for them
    dropped: int  # requests that waited too long for prefill or fit no worker
    killed: int  # requests lost with a worker at the end of its grace period
    requests: int  # all of them, also unscored ones


def _quantile(values: Any, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else float("nan")


def score(cluster: Cluster) -> Score:
    """Judge a run that has ended."""
    s, setup = cluster.requests, cluster.setup
    scored = np.ones(len(s.arrival_s), bool)
    if cluster.trace.span_s > setup.unscored_s:
        scored = s.arrival_s >= setup.unscored_s
    done = s.status == DONE
    ttft = s.first_s - s.arrival_s
    ttft_ok = done & (ttft <= s.ttft_limit_s)
    tpot = (s.last_s - s.first_s) / np.maximum(s.output_tokens - 1, 1)
    tpot_ok = done & ((s.output_tokens <= 1) | (tpot <= setup.tpot_s))
    good = ttft_ok & tpot_ok
    window = (s.arrival_s[scored] // _WINDOW_S).astype(int)
    window -= window.min()
    total = np.bincount(window)
    share = np.bincount(window, weights=good[scored])[total > 0] / total[total > 0]
    return Score(
        gpu_hours=cluster.gpu_s / 3600,
        attainment=float(good[scored].mean()),
        ttft_attainment=float(ttft_ok[scored].mean()),
        tpot_attainment=float(tpot_ok[scored].mean()),
        windows_below=float((share < 0.95).mean()),
        worst_window=float(share.min()),
        ttft_p50_s=_quantile(ttft[scored & done], 0.5),
        ttft_p99_s=_quantile(ttft[scored & done], 0.99),
        tpot_p50_s=_quantile(tpot[scored & done & (s.output_tokens > 1)], 0.5),
        tpot_p99_s=_quantile(tpot[scored & done & (s.output_tokens > 1)], 0.99),
        actions=cluster.actions,
        starts=cluster.starts,
        dropped=int((s.status == DROPPED).sum()),
        killed=int((s.status == KILLED).sum()),
        requests=len(s.arrival_s),
    )
