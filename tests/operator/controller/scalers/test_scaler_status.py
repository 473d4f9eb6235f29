"""The status of a DisaggScaler says what was found and recommended, and what is in the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.controller.scalers.scaler_status import (
    PoolFound,
    ScalerFindings,
    scaler_news,
    scaler_status,
)
from disagg_operator.status.events import NORMAL, WARNING, Note
from disagg_operator.vocabulary import Obj

UP = Decision(2, 4, "ForecastAboveCapacity", "Forecast", 3.1, 0.0, "3.1 workers of work", {"demand": 3.0})
SAME = replace(UP, current=4, reason="Enough")
BLIND = replace(SAME, reason="MetricsUnavailable")
BOTH = {"prefill": PoolFound(2, 2, None, UP, True), "decode": PoolFound(4, 4, None, SAME, True)}
GOOD = ScalerFindings(True, pools=BOTH)


def status(found: ScalerFindings, previous: Obj | None = None, now: str = "t1") -> Obj:
    return scaler_status(found, previous or {}, 7, now)


def conditions(found: ScalerFindings) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in status(found)["conditions"]}


def pools(**changes: Any) -> dict[str, PoolFound]:
    return {**BOTH, "prefill": replace(BOTH["prefill"], **changes)}


@pytest.mark.parametrize(
    ("found", "ready", "able", "scaling"),
    [
        (GOOD, "Scaling", "TargetsFree", "MetricsFound"),
        (replace(GOOD, active=False), "Recommending", "TargetsFree", "MetricsFound"),
        (replace(GOOD, pools=pools(set_by="HorizontalPodAutoscaler x")), "TargetOwned", "TargetOwned", "MetricsFound"),
        (replace(GOOD, active=False, pools=pools(set_by="H x")), "Recommending", "TargetOwned", "MetricsFound"),
        (ScalerFindings(True, refused=("InvalidSpec", "x")), "InvalidSpec", "InvalidSpec", "NoDecision"),
        (ScalerFindings(True, unscalable=("NotScalable", "x")), "NotScalable", "NotScalable", "NoDecision"),
        (ScalerFindings(False, unscalable=("NotScalable", "x")), "NotScalable", "NotScalable", "NoDecision"),
        (replace(GOOD, blind=("CredentialsUnavailable", "x")), *["CredentialsUnavailable", "TargetsFree"] * 1,
         "CredentialsUnavailable"),
        (replace(GOOD, pools=pools(decision=BLIND)), "MetricsUnavailable", "TargetsFree", "MetricsUnavailable"),
        (replace(GOOD, pools=pools(decision=None)), "NoDecision", "TargetsFree", "NoDecision"),
        (replace(GOOD, pools=pools(replicas=0, decision=None)), "ScaledToZero", "TargetsFree", "ScaledToZero"),
    ],
)  # fmt: skip
def test_conditions(found: ScalerFindings, ready: str, able: str, scaling: str) -> None:
    seen = conditions(found)
    assert [seen[kind][1] for kind in ("Ready", "AbleToScale", "ScalingActive")] == [ready, able, scaling]
    assert (seen["Ready"][0] == "True") is (ready in ("Scaling", "Recommending"))


def test_whoever_sets_a_target_is_named_and_nothing_may_be_written() -> None:
    found = replace(GOOD, pools=pools(set_by="ScaledObject x"))
    assert not found.may_scale
    told = status(found)
    assert "prefill is set by ScaledObject x" in told["conditions"][0]["message"]
    assert told["pools"][0]["setBy"] == "ScaledObject x"
    assert told["pools"][0]["lastDecision"]["dryRun"] is True


def test_recommendations_are_in_columns_and_pools() -> None:
    told = status(GOOD)
    assert (told["prefill"], told["decode"], told["observedGeneration"]) == ("2 -> 4", "4", 7)
    first, second = told["pools"]
    assert (first["current"], first["recommended"], first["lastDecision"]["to"]) == (2, 4, 4)
    assert first["lastDecision"]["numbers"] == {"demand": 3.0}
    assert "lastDecision" not in second


def test_a_decision_of_an_earlier_look_is_not_told_again() -> None:
    first = status(GOOD)
    again = status(replace(GOOD, pools=pools(fresh=False)), first, "t2")
    assert again == first


def test_nothing_is_known_of_pools_that_were_not_found() -> None:
    assert "pools" not in status(ScalerFindings(True, refused=("InvalidSpec", "x")))


def judged(prefill: str | None, decode: str | None) -> ScalerFindings:
    """Return findings in which the policy says why each pool cannot meet its objective."""
    both = {"prefill": replace(UP, unmet=prefill), "decode": replace(SAME, unmet=decode)}
    return replace(GOOD, pools={role: replace(pool, decision=both[role]) for role, pool in BOTH.items()})


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (judged("", ""), ("True", "WithinReach")),
        (judged("", "6 fit"), ("False", "ObjectivesInfeasible")),
        (judged("3 fit", None), None),
        (judged(None, None), None),
        (replace(judged("", "6 fit"), active=False), ("False", "ObjectivesInfeasible")),
        (replace(GOOD, pools=pools(replicas=0, decision=None)), None),
        (ScalerFindings(True, refused=("InvalidSpec", "x")), None),
    ],
    ids=["within reach", "one pool", "one is unknown", "unknown", "in shadow", "at zero", "refused"],
)
def test_objectives_that_cannot_be_met_are_told(found: ScalerFindings, told: tuple[str, str] | None) -> None:
    assert conditions(found).get("ObjectivesFeasible") == told
    # What is within reach is scaled for all the same.
    assert conditions(judged("", "6 fit"))["Ready"] == ("True", "Scaling")


def test_the_message_names_each_pool() -> None:
    (message,) = (c["message"] for c in status(judged("3 fit", "6 fit"))["conditions"] if "6 fit" in c["message"])
    assert message == "prefill: 3 fit; decode: 6 fit"


def test_news_are_told_once() -> None:
    fine, bad, unable = status(judged("", "")), status(judged("", "6 fit")), status(replace(GOOD, blind=("A", "b")))
    cannot = Note(WARNING, "ObjectivesInfeasible", "ObjectivesFeasible: decode: 6 fit")
    well = Note(NORMAL, "Scaling", "both targets follow the load")
    assert scaler_news({}, bad) == [well, cannot]
    assert scaler_news(fine, bad) == [cannot]
    assert scaler_news(bad, bad) == scaler_news(bad, fine) == scaler_news(bad, status(judged("", "5 fit"))) == []
    assert scaler_news(fine, unable) == [Note(WARNING, "A", "b")]
    assert scaler_news(unable, fine) == [well]
    assert scaler_news(fine, status(replace(GOOD, pools=pools(decision=None)))) == []  # unknown
