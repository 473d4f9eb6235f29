"""Both policies decide by one step, and each remembers what it needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.operator.api.resources import good
from tests.operator.autoscaling.policy.test_guard import observation

from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.observation import Folded
from disagg_operator.autoscaling.policy.queue_depth import QueueSample
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.fold import Memory
from disagg_operator.autoscaling.signals.policy_inputs import Seen
from disagg_operator.controller.acceptance import scale_plan

POOL = {"autoscaling": {"minReplicas": 1, "maxReplicas": 9}}


def plan(policy: str, **spec: Any) -> ScalePlan:
    found = scale_plan(good(scaling={"policy": policy}, **{"prefill": POOL, "decode": POOL, **spec}))
    assert found is not None
    return found


def seen(at_s: float = 0.0, requests: float | None = 100.0, *, fresh: bool = True, first: bool = False) -> Seen:
    o = observation(at_s)
    samples = {pool: QueueSample(o.now_s, requests) for pool in ("prefill", "decode")}
    return Seen(Folded(o, frozenset()), samples, Memory(at_s=o.now_s), fresh, first)


def test_the_queue_decides_for_the_pools_that_are_scaled_and_remembers_each() -> None:
    outcome, memory = chosen_policy.step(plan("queue", prefill={"replicas": 2}), seen(), PolicyMemory())
    assert outcome is not None
    assert set(outcome.decisions) == set(memory.queues) == set(outcome.samples) == {"decode"}
    assert (outcome.targets.prefill, outcome.targets.decode) == (2, outcome.decisions["decode"].to)
    assert outcome.queue is not None
    assert outcome.queue.states["decode"].samples == ()
    # Where another policy is asked later, a pool that is not scaled stays.
    assert (outcome.settings.prefill.least, outcome.settings.prefill.most) == (2, 2)


def test_the_queue_decides_at_every_look_and_says_what_it_remembered() -> None:
    first, memory = chosen_policy.step(plan("queue"), seen(fresh=False, first=True), PolicyMemory())
    second, _ = chosen_policy.step(plan("queue"), seen(5.0), memory)
    assert first is not None
    assert second is not None
    assert second.queue is not None
    assert second.queue.states == memory.queues
    assert memory.counters.at_s == first.observation.now_s


@pytest.mark.parametrize(("fresh", "first"), [(False, False), (True, True), (False, True)])
def test_the_predictive_policy_waits_for_counters_that_say_something(fresh: bool, first: bool) -> None:
    outcome, memory = chosen_policy.step(plan("predictive"), seen(fresh=fresh, first=first), PolicyMemory())
    assert outcome is None
    assert memory.counters == seen().counters
    assert repr(memory.predicting) == repr(PolicyMemory().predicting)


def test_the_predictive_policy_decides_and_remembers() -> None:
    outcome, memory = chosen_policy.step(plan("predictive"), seen(), PolicyMemory())
    assert outcome is not None
    assert set(outcome.decisions) == {"prefill", "decode"}
    assert outcome.queue is None
    assert memory.predicting.seen_s == outcome.observation.now_s


@pytest.mark.parametrize(
    ("role_flip_s", "flips_s", "expected"), [(5.0, (), 5.0), (5.0, (2.0, 4.0), 3.0), (None, (2.0, 4.0), None)]
)
def test_a_move_between_pools_takes_what_the_last_ones_took(
    role_flip_s: float | None, flips_s: tuple[float, ...], expected: float | None
) -> None:
    asked = plan("predictive")
    asked = replace(asked, settings=replace(asked.settings, role_flip_s=role_flip_s))
    outcome, _ = chosen_policy.step(asked, seen(), PolicyMemory(), flips_s)
    assert outcome is not None
    assert outcome.settings.role_flip_s == expected
