"""Bounds and peaks are those of the pool that is asked for."""

from __future__ import annotations

import pytest

from disagg_operator.autoscaling.policy.memory import Peak, PoolLimits, Settings
from disagg_operator.performance.profile import PROFILES


def test_each_pool_has_its_own_bounds_and_peaks() -> None:
    settings = Settings(PROFILES["8b-h100"], 0.06, PoolLimits(1, 5), PoolLimits(2, 9, 4))
    assert (settings.limits("prefill"), settings.limits("decode")) == (PoolLimits(1, 5), PoolLimits(2, 9, 4))
    peak = Peak(0.0, 60.0, prefill=3, decode=4)
    assert (peak.workers("prefill"), peak.workers("decode")) == (3, 4)


@pytest.mark.parametrize(
    ("hour", "horizon_h", "expected"),
    [(8, 0.0, False), (8, 0.4, False), (8, 0.6, True), (9, 0.0, True), (10, 0.0, False), (33, 0.0, True)],
)
def test_a_peak_is_near_from_a_cold_start_before_it_on(hour: float, horizon_h: float, expected: bool) -> None:
    peak = Peak(8.5 * 3600, 10 * 3600, 1, 1)
    assert peak.is_near(3600 * hour, 3600 * horizon_h) is expected
    assert Peak(22 * 3600, 6 * 3600).is_near(3600.0, 0.0)
