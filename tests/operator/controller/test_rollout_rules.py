"""The rules of a rollout are those of spec.rollout, and those of a pool where it has its own."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.controller.rollout_step import rules_of

SIZES = {"prefill": 4, "decode": 8}


@pytest.mark.parametrize(
    ("spec", "surge", "unavailable"),
    [
        pytest.param({}, (1, 1), (0, 0), id="nothing is declared"),
        pytest.param(
            {"rollout": {"maxSurge": "25%", "maxUnavailable": "30%"}}, (1, 2), (1, 2), id="of the size of each pool"
        ),
        pytest.param(
            {"rollout": {"maxSurge": 2, "maxUnavailable": 1}, "decode": {"maxSurge": 0, "maxUnavailable": "50%"}},
            (2, 0), (1, 4), id="a pool has its own",
        ),
    ],
)  # fmt: skip
def test_a_pool_may_have_its_own_surge_and_absence(
    spec: dict[str, Any], surge: tuple[int, int], unavailable: tuple[int, int]
) -> None:
    rules = rules_of(parse(good(**spec)), SIZES)
    assert tuple(rules.surge.values()) == surge
    assert tuple(rules.unavailable.values()) == unavailable


def test_the_other_fields_reach_the_planner() -> None:
    rules = rules_of(parse(good()), SIZES)
    assert (rules.surge_gpus, rules.recreate, rules.paused, rules.deadline_s) == (None, False, False, 7800.0)
    declared = {"maxSurgeGPUs": 3, "strategy": "Recreate", "paused": True, "progressDeadlineSeconds": 60}
    rules = rules_of(parse(good(rollout=declared)), SIZES)
    assert (rules.surge_gpus, rules.recreate, rules.paused, rules.deadline_s) == (3, True, True, 60.0)
