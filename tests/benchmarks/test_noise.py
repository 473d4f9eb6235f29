"""Tests of the noise that a policy is benchmarked with."""

from __future__ import annotations

import math

import pytest
from benchmarks.autoscaling.noise import NoisyMetrics

from disagg_operator.autoscaling.policy.observation import (
    DecodeSignals,
    Observation,
    Pods,
    PrefillSignals,
    Targets,
)


def test_counts_of_lost_scrapes_come_with_the_next_and_most_values_are_a_little_off() -> None:
    seen: list[Observation] = []

    def policy(o: Observation) -> Targets:
        seen.append(o)
        return Targets(3, 4)

    noisy, pods = NoisyMetrics(policy), Pods(3, 3)
    for i in range(2000):
        prefill = PrefillSignals(pods, arrivals=100.0, prompt_tokens=1e4, prompt_tokens_squared=1e6, ttft_total=100.0,
                                 ttft_ok=99.0, waiting_tokens=50.0)  # fmt: skip
        o = Observation(15.0 * i, 15.0, prefill, DecodeSignals(pods, generated_tokens=2e4))
        assert noisy(o) == Targets(3, 4)
    assert 1700 < len(seen) < 1900
    assert sum(o.interval_s for o in seen) == pytest.approx(15.0 * 2000, abs=60)
    assert any(o.prefill.arrivals > 1.8 * 100 for o in seen if o.interval_s == 30)
    assert all(not o.prefill.waiting_tokens > 58 for o in seen if not o.prefill.waiting_tokens > 1000)
    assert 0.05 < sum(o.blind for o in seen) / len(seen) < 0.15
    known = [o.prefill for o in seen if o.prefill.ttft_total > 0]
    assert {round(p.ttft_ok / p.ttft_total, 9) for p in known} == {0.99}
    assert sum(p.ttft_total > 1000 for p in known) in range(1, 10)
    assert any(math.isnan(o.prefill.ttft_total) for o in seen)
