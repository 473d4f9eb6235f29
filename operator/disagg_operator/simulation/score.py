"""What a simulated run is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from disagg_operator.simulation import state
from disagg_operator.simulation.cluster import Cluster

_WINDOW_S = 300.0


@dataclass(frozen=True, slots=True)
class Score:
    """Shares are 0..1; a request attains if its TTFT and its TPOT are within the objectives; dropped and killed ones never do."""

    gpu_hours: float
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    windows_below: float  # share of 5-minute windows with less than 95 % attainment
    worst_window: float
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float
    actions: int
    starts: int
    dropped: int
    killed: int
    requests: int


def _quantile(values: Any, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else float("nan")


def score(cluster: Cluster) -> Score:
    """Judge a run that has ended."""
    s, setup = cluster.sim, cluster.setup
    scored = s.arrival_s >= setup.unscored_s if cluster.trace.span_s > setup.unscored_s else np.ones(len(s.arrival_s), bool)
    done = s.status == state.DONE
    ttft = s.first_s - s.arrival_s
    ttft_ok = done & (ttft <= s.ttft_limit_s)
    tpot = (s.last_s - s.first_s) / np.maximum(s.output - 1, 1)
    tpot_ok = done & ((s.output <= 1) | (tpot <= setup.tpot_s))
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
        tpot_p50_s=_quantile(tpot[scored & done & (s.output > 1)], 0.5),
        tpot_p99_s=_quantile(tpot[scored & done & (s.output > 1)], 0.99),
        actions=cluster.actions,
        starts=cluster.starts,
        dropped=int((s.status == state.DROPPED).sum()),
        killed=int((s.status == state.KILLED).sum()),
        requests=len(s.arrival_s),
    )
