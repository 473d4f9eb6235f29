"""The fields of spec.rollout, and numbers that may be percentages."""

from __future__ import annotations

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.api.rollout import amount_of
from disagg_operator.api.v1alpha1 import InvalidResource


@pytest.mark.parametrize(
    ("value", "size", "more", "fewer"),
    [
        (0, 8, 0, 0),
        (3, 8, 3, 3),
        ("2", 8, 2, 2),
        ("25%", 8, 2, 2),
        ("25%", 5, 2, 1),
        ("0%", 5, 0, 0),
        ("100%", 3, 3, 3),
    ],
)
def test_a_percentage_is_rounded_up_for_more_workers_and_down_for_fewer(
    value: str | int, size: int, more: int, fewer: int
) -> None:
    assert (amount_of(value, size, up=True), amount_of(value, size, up=False)) == (more, fewer)


@pytest.mark.parametrize("value", [0, 1, 1000, "0", "17", "1000", "0%", "25%", "100%"])
@pytest.mark.parametrize("field", ["maxSurge", "maxUnavailable"])
def test_a_number_or_a_percentage_is_taken_as_it_is_declared(field: str, value: str | int) -> None:
    spec = parse(good(rollout={field: value})).spec.rollout
    assert (spec.max_surge if field == "maxSurge" else spec.max_unavailable) == value


@pytest.mark.parametrize("value", [-1, 1001, "1001", "9999", True, "1.5", "30 %", "abc", "1000%"])
def test_other_amounts_are_refused(value: object) -> None:
    with pytest.raises(InvalidResource, match=r"spec\.rollout\.maxSurge"):
        parse(good(rollout={"maxSurge": value}))


def test_the_defaults_are_those_of_a_deployment_that_loses_no_capacity() -> None:
    spec = parse(good()).spec
    rollout = spec.rollout
    assert (rollout.max_surge, rollout.max_unavailable, rollout.max_surge_gpus) == (1, 0, None)
    assert (rollout.auto_rollback, rollout.paused, rollout.strategy) == (False, False, "RollingUpdate")
    assert spec.prefill.max_surge is None


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_quantity(value: bool) -> None:
    """Python counts it among the numbers."""
    with pytest.raises(InvalidResource, match=r"spec\.decode\.kvCacheSize: .*must be a number or a text"):
        parse(good(decode={"kvCacheSize": value}))


def test_a_canary_has_defaults() -> None:
    assert parse(good()).spec.rollout.canary is None
    canary = parse(good(rollout={"canary": {}})).spec.rollout.canary
    assert canary is not None
    assert (canary.weight, canary.min_requests, canary.max_duration_seconds, canary.analysis) == (10, 100, 3600, None)
