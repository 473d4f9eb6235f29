"""Canaries whose rules change in the middle, and what stays of one that a person has promoted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.test_canary_rollouts import BAD, CANARY, GOOD, OLD, SAME_NAME, promote, tried

from disagg_operator.rollout.canary_record import PROMOTE_ANNOTATION


@pytest.mark.parametrize(
    "change",
    [{"weight": 20}, {"minRequests": 50}, {"analysis": {"ttftSeconds": {"p99": 0.1}}}],
    ids=lambda change: next(iter(change)),
)
async def test_what_was_counted_by_other_rules_decides_nothing(change: dict[str, Any]) -> None:
    world = await tried()
    world.serve((99, 60), (900, 891))
    world.later(500)
    world.edit(rollout={"canary": {**CANARY["canary"], **change}})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "Canary"
    assert ", 0 of" in world.condition("Progressing")["message"]
    world.later(500)  # the time begins anew, too
    world.serve(GOOD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_the_annotation_that_promotes_a_canary_may_stay_and_says_nothing_of_another() -> None:
    world = await tried()
    promote(world)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    world.edit(model={**SAME_NAME, "uri": "file:///models/third"})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "Canary"
    world.serve(BAD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryFailed"
    assert world.kube.find("DisaggDeployment", "chat")["metadata"]["annotations"][PROMOTE_ANNOTATION]
