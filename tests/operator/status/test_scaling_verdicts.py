"""Tests of what the conditions say of scaling."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.operator.status.test_conditions import INTENT, POOLS, SCALED, seen, told

from disagg_operator.status.scaling_verdicts import objectives_feasible, scaling_active


@pytest.mark.parametrize(
    ("unmet", "verdict"),
    [
        ({}, None),
        ({"prefill": None, "decode": ""}, None),
        ({"prefill": "", "decode": ""}, ("True", "WithinReach", "the pools can meet their objectives")),
        ({"prefill": "", "decode": "too fast"}, ("False", "ObjectivesInfeasible", "decode: too fast")),
    ],
)
def test_what_cannot_be_met_is_said_once_it_is_known(
    unmet: dict[str, str | None], verdict: tuple[str, str, str] | None
) -> None:
    assert objectives_feasible(unmet) == verdict


def test_a_server_that_does_not_answer_is_told_once_metrics_are_missing() -> None:
    trouble = ("MetricsUnavailable", "no answer")
    assert scaling_active(False, [], trouble)[1] == "MetricsFound"
    assert scaling_active(False, ["decode"], trouble)[2] == "no answer: replicas are held"
    assert scaling_active(False, [], ("CredentialsUnavailable", "no Secret"))[1] == "CredentialsUnavailable"
    assert scaling_active(False, ["decode"], None)[1] == "MetricsUnavailable"
    assert scaling_active(True, [], None)[1] == "Suspended"


def test_the_condition_shows_it_and_serving_goes_on() -> None:
    hopeless = replace(INTENT, pools=(POOLS[0], replace(SCALED, unmet="too fast")))
    found = told(hopeless, seen())
    assert (found["ObjectivesFeasible"], found["Ready"]) == (("False", "ObjectivesInfeasible"), ("True", "Ready"))
    assert found["Degraded"][0] == "False"
    for intent in (INTENT, replace(INTENT, pools=(POOLS[0], SCALED)), replace(hopeless, suspended=True)):
        assert "ObjectivesFeasible" not in told(intent, seen())
