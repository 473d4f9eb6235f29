"""Tests of the days that are rebuilt from histories by the minute."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.autoscaling import days

from disagg_operator.autoscaling.policy.history import Minute
from disagg_operator.simulation.traces import Trace

DAY_S = 86_400.0


def _trace() -> Trace:
    """Return an hour in which prompts are short in even minutes and long in odd ones."""
    random = np.random.default_rng(1)
    arrival = np.sort(random.uniform(0.0, 3600.0, 7200))
    long = (arrival // 60).astype(int) % 2 == 1
    prompt = np.where(long, random.integers(900, 1100, 7200), random.integers(90, 110, 7200))
    return Trace("hour", arrival, prompt, np.zeros_like(prompt), random.integers(40, 60, 7200))


def _history() -> list[Minute]:
    """Return two days, in which each minute can be recognized by its number of requests."""
    return [
        Minute((i - 2 * 1440 + 1) * 60.0, 1 + i % 7, (1 + i % 7) * (100.0 if i % 2 else 1000.0), (1 + i % 7) * 50.0)
        for i in range(2880)
    ]


def test_each_minute_has_the_sums_of_its_history() -> None:
    rebuilt, before = days.day(_trace(), _history(), back=1)
    assert len(before) == 1440
    assert before[-1].at_s == 0.0
    minute = (rebuilt.arrival_s // 60).astype(int)
    during = [m for m in _history() if m.at_s > -DAY_S]
    assert (np.diff(rebuilt.arrival_s) >= 0).all()
    assert np.bincount(minute, minlength=1440).tolist() == [int(m.requests) for m in during]
    for tokens, wanted in (
        (rebuilt.prompt_tokens, [m.prompt_tokens for m in during]),
        (rebuilt.output_tokens, [m.output_tokens for m in during]),
    ):
        assert np.bincount(minute, weights=tokens, minlength=1440) == pytest.approx(np.array(wanted), abs=0.5 * 7)


def test_lengths_are_whole_requests_of_a_moment_like_it() -> None:
    rebuilt, _ = days.day(_trace(), _history(), back=1)
    long = (rebuilt.arrival_s // 60).astype(int) % 2 == 0  # as the history has it
    assert rebuilt.prompt_tokens[long].min() > 700
    assert rebuilt.prompt_tokens[~long].max() < 150


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gaps_vary_as_the_traces_do_whatever_the_rate_is(cv: float) -> None:
    random = np.random.default_rng(2)
    gaps = random.gamma(1 / cv**2, size=100_000) * np.linspace(1.0, 5.0, 100_000)  # a rate that falls to a fifth
    arrival = gaps.cumsum()
    ones = np.ones(len(arrival), int)
    assert days.gap_variation(Trace("t", arrival, ones, 0 * ones, ones)) == pytest.approx(cv, rel=0.05)
