"""The policy `queue`: tables for the documented rules, properties for the invariants."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy import queue_depth
from disagg_operator.autoscaling.policy.decision import (
    ABOVE_MAXIMUM,
    AT_LIMIT,
    AT_TARGET,
    BELOW_MINIMUM,
    METRICS_UNAVAILABLE,
    SCALE_UP,
    STABILIZING,
    WITHIN_TOLERANCE,
    Decision,
    PoolRules,
)
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory, QueueSample, step

RULES = PoolRules(min_replicas=1, max_replicas=8, target=4.0, down_window_s=60.0, smoothing_s=0.0)


def run(samples: list[QueueSample], replicas: int, rules: PoolRules = RULES) -> list[Decision]:
    """Step through samples, and carry out every decision at once."""
    state, decisions = QueueMemory(), []
    for sample in samples:
        decision, state = step(rules, sample, replicas, state)
        decisions.append(decision)
        replicas = decision.to
    return decisions


def steady(requests: float | None, until_s: int, start_s: int = 0, **silent: Any) -> list[QueueSample]:
    return [QueueSample(float(t), requests, **silent) for t in range(start_s, until_s, 3)]


@pytest.mark.parametrize(
    ("requests", "replicas", "to", "reason"),
    [
        pytest.param(9.0, 1, 3, SCALE_UP, id="nine requests at four a replica need three replicas, at once"),
        pytest.param(4.0, 1, 1, AT_TARGET, id="exactly at target holds"),
        pytest.param(4.3, 1, 1, WITHIN_TOLERANCE, id="a little over is within tolerance"),
        pytest.param(100.0, 1, 8, SCALE_UP, id="never above the maximum"),
        pytest.param(100.0, 8, 8, AT_LIMIT, id="at the maximum it holds and says so"),
        pytest.param(0.0, 1, 1, AT_LIMIT, id="never below the minimum"),
        pytest.param(0.0, 4, 4, STABILIZING, id="one idle look scales nothing down"),
        pytest.param(4.0, 12, 8, ABOVE_MAXIMUM, id="above the maximum is brought to it"),
        pytest.param(4.0, 0, 1, BELOW_MINIMUM, id="below the minimum is brought to it"),
        pytest.param(None, 4, 4, METRICS_UNAVAILABLE, id="no data holds"),
        pytest.param(math.nan, 4, 4, METRICS_UNAVAILABLE, id="NaN is no data"),
        pytest.param(math.inf, 4, 4, METRICS_UNAVAILABLE, id="nor is infinity"),
        pytest.param(-3.0, 4, 4, METRICS_UNAVAILABLE, id="nor less than nothing"),
        pytest.param(None, 0, 1, BELOW_MINIMUM, id="the minimum holds without data"),
        pytest.param(None, 12, 8, ABOVE_MAXIMUM, id="the maximum holds without data"),
    ],
)
def test_first_step(requests: float | None, replicas: int, to: int, reason: str) -> None:
    decision, _ = step(RULES, QueueSample(0.0, requests), replicas, QueueMemory())
    assert (decision.to, decision.reason) == (to, reason)


def test_scale_down_waits_for_the_whole_window_and_goes_to_its_maximum() -> None:
    decisions = run([*steady(12.0, 30), *steady(5.0, 45, 30), *steady(0.0, 120, 45)], replicas=3)
    changes = [(d.current, d.to, i * 3) for i, d in enumerate(decisions) if d.to != d.current]
    assert changes[0][:2] == (3, 2)  # the maximum of the window was still the recommendation for 5 requests
    assert changes[0][2] > 30 + 57
    assert changes[-1][:2] == (2, 1)


def test_a_hole_in_the_data_starts_the_window_anew() -> None:
    decisions = run([*steady(0.0, 57), QueueSample(100.0, 0.0), *steady(0.0, 157, 103)], replicas=3)
    assert all(d.to == 3 for d in decisions)
    assert run([*steady(0.0, 57), *steady(0.0, 70, 57)], replicas=3)[-1].to == 1


def test_a_restart_with_an_idle_pool_waits_a_window() -> None:
    decisions = run(steady(0.0, 59), replicas=5)
    assert {d.to for d in decisions} == {5}


def test_a_silent_pod_is_empty_on_the_way_up_and_full_on_the_way_down() -> None:
    up = step(RULES, QueueSample(0.0, 11.0, silent_pods=1), 2, QueueMemory())[0]
    assert up.to == 3
    state = QueueMemory()
    for sample in steady(1.0, 90, silent_pods=2):
        decision, state = step(RULES, sample, 3, state)
    assert (decision.to, decision.reason) == (3, METRICS_UNAVAILABLE)


def test_a_silent_router_forbids_scaling_down_but_not_up() -> None:
    state = QueueMemory()
    for sample in [QueueSample(s.at, s.requests, router_silent=True) for s in steady(0.0, 120)]:
        decision, state = step(RULES, sample, 3, state)
        assert decision.to == 3
    assert decision.blind
    assert step(RULES, QueueSample(0.0, 40.0, router_silent=True), 3, QueueMemory())[0].to == 8


def test_a_spike_of_one_sample_is_averaged_away() -> None:
    rules = PoolRules(1, 8, 4.0, smoothing_s=10.0)
    calm = [QueueSample(float(t), 1.0) for t in range(0, 9, 3)]
    decisions = run([*calm, QueueSample(9.0, 9.0), QueueSample(12.0, 1.0)], replicas=1, rules=rules)
    assert {d.to for d in decisions} == {1}


def test_starting_pods_are_capacity_so_a_waiting_queue_asks_once() -> None:
    decisions = run(steady(12.0, 90), replicas=1)
    assert [d.to for d in decisions if d.to != d.current] == [3]


def test_an_up_window_takes_the_smallest_recommendation() -> None:
    rules = PoolRules(1, 8, 4.0, up_window_s=15.0, smoothing_s=0.0)
    decisions = run([*steady(8.0, 9), *steady(40.0, 30, 9)], replicas=1, rules=rules)
    assert decisions[3].to == 1
    assert next(d.to for d in decisions if d.to > 1) == 2


rules_st = st.builds(
    lambda low, extra, target, window: PoolRules(low, low + extra, target, down_window_s=window),
    st.integers(1, 5), st.integers(0, 10), st.floats(0.5, 100), st.floats(0, 600),
)  # fmt: skip
samples_st = st.lists(
    st.tuples(st.floats(0.1, 60), st.none() | st.floats(0, 5000), st.integers(0, 3), st.booleans()), max_size=40
)


@given(rules_st, samples_st, st.integers(0, 20))
def test_every_decision_is_within_bounds_and_never_down_without_data(
    rules: PoolRules, raw: list[tuple[float, float | None, int, bool]], replicas: int
) -> None:
    state, now = QueueMemory(), 0.0
    for gap, requests, silent, router_silent in raw:
        now += gap
        decision, state = step(rules, QueueSample(now, requests, silent, router_silent), replicas, state)
        assert rules.min_replicas <= decision.to <= rules.max_replicas
        if decision.to < replicas:
            assert replicas > rules.max_replicas or (requests is not None and not router_silent)
        replicas = decision.to


@given(rules_st, st.floats(0, 5000), st.integers(1, 20))
def test_a_constant_load_settles_and_stays(rules: PoolRules, requests: float, replicas: int) -> None:
    state, seen = QueueMemory(), []
    for at in range(0, 2000, 15):
        decision, state = step(rules, QueueSample(float(at), requests), replicas, state)
        replicas = decision.to
        seen.append(replicas)
    assert len(set(seen[len(seen) // 2 :])) == 1


@given(rules_st, samples_st)
def test_what_a_step_remembers_is_bounded_by_its_windows(
    rules: PoolRules, raw: list[tuple[float, float | None, int, bool]]
) -> None:
    state, now = QueueMemory(), 0.0
    for gap, requests, _, _ in raw:
        now += gap
        _, state = step(rules, QueueSample(now, requests), 2, state)
        assert all(now - queue_depth.MAX_GAP_S - 60 <= s.at for s in state.samples) or requests is None
        assert len(state.samples) <= 102
