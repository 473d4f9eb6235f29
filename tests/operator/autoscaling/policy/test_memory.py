"""Bounds and peaks are those of the pool that is asked for."""

from __future__ import annotations

from disagg_operator.autoscaling.policy.memory import Peak, PoolLimits, Settings
from disagg_operator.performance.profile import PROFILES


def test_each_pool_has_its_own_bounds_and_peaks() -> None:
    settings = Settings(PROFILES["8b-h100"], 0.06, PoolLimits(1, 5), PoolLimits(2, 9, 4))
    assert (settings.limits("prefill"), settings.limits("decode")) == (PoolLimits(1, 5), PoolLimits(2, 9, 4))
    peak = Peak(0.0, 60.0, prefill=3, decode=4)
    assert (peak.workers("prefill"), peak.workers("decode")) == (3, 4)
