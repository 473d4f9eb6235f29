"""A decision is explained for each pool: what it needs, has and does, at which limit, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from disagg_operator.autoscaling.policy import guard, queue_pools
from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE, STABILIZING, PoolRules
from disagg_operator.autoscaling.policy.guard import PARTIAL_METRICS, Predicting
from disagg_operator.autoscaling.policy.memory import PoolLimits, Settings
from disagg_operator.autoscaling.policy.observation import (
    DecodeSignals,
    Folded,
    Observation,
    Pods,
    PrefillSignals,
    Targets,
)
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.records import explanation
from disagg_operator.autoscaling.records.decision_records import Step
from disagg_operator.performance.profile import PROFILES

T0 = 1_700_000_000.0
SETTINGS = Settings(PROFILES["8b-h100"], 0.06, PoolLimits(1, 10), PoolLimits(2, 12))
RULES = {"prefill": PoolRules(1, 10, 4.0), "decode": PoolRules(2, 12, 32.0)}


def decided(settings: Settings, load: list[float], **pods: Any) -> Step:
    """Return the last step of the policy under a load, whose workers are there at once."""
    sizes, memory, step = {"prefill": 1, "decode": 2}, Predicting(), None
    for i, per_s in enumerate(load):
        n = 5 * per_s
        p, d = (Pods(sizes[role], sizes[role], **pods) for role in ("prefill", "decode"))
        o = Observation(
            T0 + 5 * i, 5.0,
            PrefillSignals(p, n, 1000 * n, 1.5e6 * n, 0.0, 0.0, 1.0, 1.0, n, n),
            DecodeSignals(d, 0.0, 20.0, 20e3, 4e5, 300 * n, n, 300 * n, 1200 * n, n, n),
        )  # fmt: skip
        outcome, memory = guard.step(settings, RULES, {}, Folded(o, frozenset()), memory)
        assert outcome is not None
        sizes = {name: d.to for name, d in outcome.decisions.items()}
        reasons = {name: d.reason for name, d in outcome.decisions.items()}
        step = Step(o, outcome.targets, sizes, reasons, dry_run=False)
    assert step is not None
    return step


def told(step: Step, settings: Settings = SETTINGS) -> dict[str, dict[str, str]]:
    return {pool: dict(lines) for pool, lines in explanation.of_step(step, settings).items()}


def test_a_pool_says_what_it_needs_has_and_does() -> None:
    step = decided(SETTINGS, [20.0] * 200)
    found = told(step)["prefill"]
    needed = step.targets.numbers["prefill_best"]
    assert found["needs"].startswith(f"{needed:.0f} worker")
    assert "of work now" in found["needs"]
    assert "forecasts were off by a factor of" in found["needs"]
    assert found["has"] == f"{step.observation.prefill.pods.replicas} ready of {step.observation.prefill.pods.replicas}"
    assert found["does"].startswith("stays at")
    assert "are expected to miss, 0.00% have lately" in found["price"]
    assert "shares" not in found


def test_a_pool_that_holds_more_than_it_needs_says_why() -> None:
    step = decided(SETTINGS, [60.0] * 200 + [20.0] * 12)
    assert "would do now, but" in told(step)["decode"]["does"]


def test_a_pool_at_a_bound_of_its_own_says_so() -> None:
    step = decided(SETTINGS, [0.1] * 150)
    assert told(step)["decode"]["limit"] == "MinReplicas: 2 to 12 workers"
    step = decided(SETTINGS, [400.0] * 60)
    found = told(step)["decode"]
    assert found["limit"] == "MaxReplicas: 2 to 12 workers"
    assert found["objective"].endswith("at most 12 workers are allowed")


def test_a_budget_says_what_it_gives_to_whom() -> None:
    settings = replace(SETTINGS, gpu_budget=6)
    step = decided(settings, [200.0] * 60)
    found = told(step, settings)
    prefill, decode = step.decided["prefill"], step.decided["decode"]
    assert prefill + decode == 6
    assert found["decode"]["limit"] == "GPUBudget: 6 GPUs for both pools"
    asked = step.targets.numbers["decode_asked"]
    assert found["decode"]["shares"] == (
        f"asks for {asked:.0f} and gets {decode}; prefill gets {prefill}; 6 of 6 GPUs are used"
    )


def test_a_ratio_says_its_bounds() -> None:
    settings = replace(SETTINGS, ratio=(4.0, 5.0))
    step = decided(settings, [60.0] * 60)
    limits = {pool: lines["limit"] for pool, lines in told(step, settings).items() if "limit" in lines}
    assert "Ratio: from 4 to 5 decode workers for each prefill worker" in limits.values()


def test_pods_without_a_node_are_told() -> None:
    found = told(decided(SETTINGS, [60.0], starting_ages_s=(30.0, 800.0), unplaced_s=(800.0,)))["decode"]
    assert found["has"] == "2 ready of 2, 2 starting, the oldest for 800 s, 1 without a node"
    assert found["limit"] == "ClusterCapacity: there is no node for more"


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (METRICS_UNAVAILABLE, "metrics are missing"),
        (PARTIAL_METRICS, "some pods did not answer"),
        (STABILIZING, "waits for its window"),
    ],
)
def test_a_pool_that_is_held_says_by_what(reason: str, words: str) -> None:
    o = Observation(T0, 5.0, PrefillSignals(Pods(3, 3)), DecodeSignals(Pods(2, 2)))
    step = Step(o, Targets(3, 2, "held"), {"prefill": 3}, {"prefill": reason}, dry_run=False)
    found = told(step)
    assert list(found) == ["prefill"]  # the other one is not scaled
    assert list(found["prefill"]) == ["has", "does"]
    assert found["prefill"]["does"].startswith(f"stays at 3 ({reason}): ")
    assert words in found["prefill"]["does"]


def test_numbers_that_an_earlier_release_did_not_record_are_left_out() -> None:
    numbers = {"best": 2.0, "demand": 1.5, "forecast": 1.75, "horizon_s": 90.0, "backlog": 5.0, "price": 12.0}
    o = Observation(T0, 5.0, PrefillSignals(Pods(2, 2)), DecodeSignals(Pods(2, 2)))
    targets = Targets(2, 2, "enough", {f"prefill_{name}": value for name, value in numbers.items()})
    found = told(Step(o, targets, {"prefill": 2}, {"prefill": "Enough"}, dry_run=False))["prefill"]
    assert found["needs"].endswith(" 1.75 expected in 90 s, and 5 s of one worker's work that waits")
    assert found["price"] == "missing all objectives of a worker's work costs as much as 12 workers"


def test_the_policy_by_queue_is_explained_too() -> None:
    o = Observation(T0, 5.0, PrefillSignals(Pods(1, 1)), DecodeSignals(Pods(2, 2)))
    samples = {"prefill": QueueSample(T0, 2.0), "decode": QueueSample(T0, 640.0)}
    decisions, _ = queue_pools.step(RULES, {}, samples, o)
    reasons = {pool: d.reason for pool, d in decisions.items()}
    step = Step(o, queue_pools.targets(o, decisions), {p: d.to for p, d in decisions.items()}, reasons, dry_run=False)
    found = told(step)["decode"]
    assert found["needs"] == "32 requests a worker, and there are 320"
    assert found["does"].startswith("goes from 2 to 12 (QueueAboveTarget)")
    assert found["limit"] == "MaxReplicas: 2 to 12 workers"
    assert told(step)["prefill"]["limit"] == "MinReplicas: 1 to 10 workers"
