"""Tests of the distributions of lengths, which have the specified moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.performance.model_shape import PlanError
from disagg_operator.planning.traffic import LatencyObjectives, LogNormal, Traffic, log_normal, of_samples


@given(st.floats(1, 1e5), st.floats(1, 14))
def test_mean_and_99th_percentile_come_back(mean: float, ratio: float) -> None:
    found = log_normal(mean, ratio * mean, "prompt").lengths(0.99)
    assert found.mean == mean
    assert found.tail == pytest.approx(ratio * mean, rel=1e-6)
    assert found.variance >= 0


def test_the_moments_are_those_of_samples() -> None:
    d = log_normal(800, 3800, "prompt")
    drawn = np.random.default_rng(0).lognormal(d.mu, d.sigma, 400_000)
    seen, said = of_samples(drawn.tolist(), 0.95), d.lengths(0.95)
    assert seen.mean == pytest.approx(said.mean, rel=0.01)
    assert seen.second_moment == pytest.approx(said.second_moment, rel=0.05)
    assert seen.tail == pytest.approx(said.tail, rel=0.01)


def test_without_a_percentile_the_coefficient_of_variation_is_1() -> None:
    found = log_normal(500, None, "prompt").lengths(0.99)
    assert found.variance == pytest.approx(found.mean**2)


def test_all_alike() -> None:
    assert LogNormal(100, 0.0).lengths(0.99).tail == 100


@pytest.mark.parametrize(("mean", "p99"), [(0, None), (100, 50), (100, 100_000), (float("nan"), None)])
def test_impossible_lengths_are_refused_by_name(mean: float, p99: float | None) -> None:
    with pytest.raises(PlanError, match="--prompt-tokens"):
        log_normal(mean, p99, "--prompt-tokens")


def test_a_percentile_of_samples_is_one_of_them() -> None:
    found = of_samples([1, 2, 3, 4], 0.5)
    assert (found.mean, found.tail) == (2.5, 2.0)


def test_rates_of_tokens_follow_from_the_requests_and_their_means() -> None:
    prompt, output = of_samples([100, 300], 0.99), of_samples([10, 30], 0.99)
    found = Traffic(5.0, prompt, output)
    assert (found.prompt_tokens_per_s, found.output_tokens_per_s, found.held_tokens) == (1000.0, 100.0, 210.0)
    assert found.at(2.0) == Traffic(2.0, prompt, output)


def test_a_percentile_is_so_many_deviations_above_the_mean() -> None:
    assert LatencyObjectives(1.0, 0.05).z == pytest.approx(2.326, abs=0.001)
    assert LatencyObjectives(1.0, 0.05, 0.5).z == pytest.approx(0.0, abs=1e-9)
