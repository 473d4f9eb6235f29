"""The policy `queue` steps each scaled pool by its own queue, and says what it decided."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from disagg_operator.autoscaling.policy import queue_pools
from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE, Decision, PoolRules
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory, QueueSample

RULES = PoolRules(1, 8, 4.0, smoothing_s=0.0)
LOOK = Observation(
    100.0, 5.0, PrefillSignals(Pods(2, 2), waiting_requests=3.0, running_requests=1.0),
    DecodeSignals(Pods(3, 3), waiting_requests=math.nan, running_requests=5.0),
)  # fmt: skip


def test_each_scaled_pool_is_stepped_by_its_own_queue() -> None:
    samples = {"prefill": QueueSample(100.0, 24.0), "decode": QueueSample(100.0, None)}
    decisions, after = queue_pools.step({"prefill": RULES, "decode": RULES}, {}, samples, LOOK)
    assert {pool: (d.current, d.to) for pool, d in decisions.items()} == {"prefill": (2, 6), "decode": (3, 3)}
    assert decisions["decode"].blind
    assert after["prefill"].samples == (samples["prefill"],)
    again, _ = queue_pools.step({"prefill": RULES}, after, samples, LOOK)
    assert set(again) == {"prefill"}


def decision(current: int, to: int, value: float | None = 6.0) -> Decision:
    return Decision(current, to, "QueueAboveTarget", "QueueDepth", value, 4.0)


def test_the_answer_has_all_pools_and_says_why() -> None:
    found = queue_pools.targets(LOOK, {"prefill": decision(2, 3, 12.3456), "decode": decision(3, 3, None)})
    assert (found.prefill, found.decode) == (3, 3)
    assert found.numbers == {"prefill_target": 4.0, "prefill_requests_per_worker": 12.35, "decode_target": 4.0}
    assert found.reason.split("; ")[0].startswith("prefill: 12.3 requests ")
    assert queue_pools.targets(LOOK, {}).reason == ""
    assert (queue_pools.targets(LOOK, {}).prefill, queue_pools.targets(LOOK, {}).decode) == (2, 3)


@pytest.mark.parametrize(
    ("made", "parts"),
    [
        (decision(2, 3), ["6 requests", "2 -> 3 (QueueAboveTarget)"]),
        (decision(2, 2), ["6 requests", "2", "(QueueAboveTarget)"]),
        (decision(2, 2, None), ["(QueueAboveTarget)"]),
        (replace(decision(2, 2), reason=METRICS_UNAVAILABLE), [f"({METRICS_UNAVAILABLE})"]),
    ],
)
def test_a_decision_is_told_with_what_was_seen(made: Decision, parts: list[str]) -> None:
    words = queue_pools.words(made)
    assert [part for part in parts if part not in words] == []
    assert ("->" in words) == (made.to != made.current)
    assert ("requests" in words) == (made.value is not None and not made.blind)


def test_what_the_policy_would_have_seen_is_what_waits_and_runs() -> None:
    assert queue_pools.sample_of(LOOK, "prefill") == QueueSample(100.0, 4.0)
    assert queue_pools.sample_of(LOOK, "decode") == QueueSample(100.0, None)


def test_rules_that_make_sense_pass() -> None:
    queue_pools.check({"prefill": RULES, "decode": replace(RULES, min_replicas=0, max_replicas=0)})


@pytest.mark.parametrize(
    ("pool", "rules", "words"),
    [
        ("both", RULES, "both: "),
        ("prefill", replace(RULES, min_replicas=9), "prefill.min_replicas"),
        ("prefill", replace(RULES, min_replicas=-1), "prefill.min_replicas"),
        ("decode", replace(RULES, target=0.0), "decode.target"),
        ("decode", replace(RULES, target=math.nan), "decode.target"),
        ("decode", replace(RULES, tolerance=-0.1), "decode.tolerance"),
        ("decode", replace(RULES, up_window_s=math.inf), "decode.up_window_s"),
        ("decode", replace(RULES, down_window_s=math.nan), "decode.down_window_s"),
        ("decode", replace(RULES, smoothing_s=-1.0), "decode.smoothing_s"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(pool: str, rules: PoolRules, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        queue_pools.check({pool: rules})


def test_a_memory_of_another_pool_is_not_used() -> None:
    busy = QueueMemory((QueueSample(99.0, 80.0),))
    samples = {"prefill": QueueSample(100.0, 8.0)}
    slow = replace(RULES, smoothing_s=60.0)
    (alone,), (mixed,) = (
        queue_pools.step({"prefill": slow}, states, samples, LOOK)[0].values() for states in ({}, {"decode": busy})
    )
    assert alone == mixed
