"""Tests of the workload that is told, from logs of requests and from what engines told."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.operator.planning.assessment.test_bucket_counts import counted

from disagg_operator.planning.assessment import request_load
from disagg_operator.planning.assessment.bucket_counts import Between
from disagg_operator.planning.assessment.readings import Readings

DAY_S = 86_400


def log(rate_per_s: float, seconds: float, seed: int = 1, batch: int = 1) -> request_load.RequestLoad:
    """Return the workload of Poisson arrivals, of `batch` requests each."""
    random = np.random.default_rng(seed)
    n = int(rate_per_s * seconds / batch)
    arrival = np.repeat(np.sort(random.uniform(0, seconds, n)), batch)
    prompt = random.integers(100, 1000, len(arrival))
    answer = random.integers(10, 100, len(arrival))
    return request_load.of_requests(arrival, prompt, prompt // 4, answer, 0.99)


def read(**changes: object) -> Readings:
    found = Readings(
        engine="vllm",
        models=("m",),
        workers=2,
        span_s=60.0,
        histograms={
            "prompt_lengths": counted([40.0, 8.0, 8.0]),
            "answer_lengths": counted([3.0, 3.0, 15.0]),
            "ttft": counted([1.0]),
        },
        prompt_tokens=56.0,
        cached_tokens=28.0,
        arrivals=tuple((float(i + 1), 1.0, 0.05) for i in range(60)),
        windows=(),
        late_s=0.05,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def test_a_log_is_exact() -> None:
    found = log(20, 600)
    assert found.is_exact
    assert found.requests == 12_000
    assert found.mean_per_s == pytest.approx(20, rel=0.01)
    assert found.prompt.mean == pytest.approx(549.5, rel=0.02)
    assert found.cached_share == pytest.approx(0.25, abs=0.01)
    assert found.planned_prompt.mean == pytest.approx(0.75 * found.prompt.mean, rel=0.01)
    assert found.traffic().prompt is found.traffic(least=True).prompt
    assert found.hours == ()


def test_bursts() -> None:
    assert log(20, 600).bursts == pytest.approx(1.0, abs=0.15)
    assert log(20, 600, batch=10).bursts == pytest.approx(10.0, rel=0.2)


def test_what_varies_over_minutes_is_no_burst() -> None:
    arrival = np.sort(
        np.concatenate([np.random.default_rng(i).uniform(60 * i, 60 * i + 60, 60 * i) for i in range(1, 30)])
    )
    ones = np.ones(len(arrival), np.int64)
    assert request_load.of_requests(arrival, ones, 0 * ones, ones, 0.99).bursts == pytest.approx(1.0, abs=0.15)


def test_the_rate_by_hour_and_at_the_busiest() -> None:
    random = np.random.default_rng(3)
    quiet, busy = random.uniform(0, DAY_S, 8640), random.uniform(7 * 3600, 7 * 3600 + 300, 3000)
    arrival = np.sort(np.concatenate([quiet, busy]))
    ones = np.ones(len(arrival), np.int64)
    found = request_load.of_requests(arrival, ones, 0 * ones, ones, 0.99)
    assert [h.hour for h in found.hours] == list(range(24))
    assert found.busiest_per_s == pytest.approx(10.1, abs=0.1)
    hour = found.hours[7]
    assert hour.mean_per_s == pytest.approx(3000 / 3600 + 0.1, abs=0.05)
    assert hour.busiest_per_s == found.busiest_per_s
    assert found.traffic().requests_per_s == found.busiest_per_s
    assert found.traffic(3.0).requests_per_s == 3.0


def test_what_engines_told_are_intervals() -> None:
    found = request_load.of_readings(read(), 0.99)
    assert not found.is_exact
    assert found.prompt.median == Between(5.0, 10.0)
    assert found.prompt.tail == Between(20.0, 50.0)
    assert found.answer.mean == 7.0
    assert found.requests == pytest.approx(3.0)
    assert found.busiest_per_s == pytest.approx(0.05)
    assert found.cached_share == 0.5
    # Without a histogram of what was computed, prompts are shorter by the share of the cache.
    assert found.planned_prompt.mean == pytest.approx(56 / 3 / 2)
    assert found.planned_prompt.tail == 25.0
    assert found.least_prompt.tail == 10.0
    assert found.traffic(least=True).output.tail == 10.0
    computed = {**read().histograms, "computed_lengths": counted([2.0, 2.0, 2.0])}
    assert request_load.of_readings(read(histograms=computed), 0.99).planned_prompt.mean == 2.0
    assert request_load.of_readings(read(prompt_tokens=0.0), 0.99).cached_share == 0.0
    everything = request_load.of_readings(read(cached_tokens=56.0), 0.99)
    assert everything.planned_prompt.mean == everything.prompt.mean


def test_bursts_are_not_seen_in_minutes() -> None:
    minutes = tuple((60.0 * i, 60.0, 10.0) for i in range(1, 200))
    found = request_load.of_readings(read(arrivals=minutes, span_s=60.0 * 199, clock=True), 0.99)
    assert found.bursts is None
    assert found.clock
    assert len(found.hours) == 4
    assert found.busiest_per_s == pytest.approx(1 / 6)


def test_little_of_five_minutes_is_no_busiest_time() -> None:
    arrivals = tuple((1000.0 * i, 1.0, 5.0) for i in range(1, 4))
    found = request_load.of_readings(read(arrivals=arrivals, span_s=3000.0), 0.99)
    assert found.busiest_per_s == pytest.approx(15 / 3000)
    assert found.bursts is None
    assert math.isfinite(found.mean_per_s)
