"""Tests of what is added to conditions when they are stored."""

from __future__ import annotations

from disagg_operator.status.stamping import FALSE, TRUE, Condition, conditions_of, stamped
from disagg_operator.vocabulary import Obj

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
STARTING = Condition("DecodeReady", FALSE, "PodsPending", "0 of 1 pods are ready")


def stored(found: Condition, previous: Obj, now: str) -> Obj:
    """Return a status that has one condition."""
    return {"conditions": stamped([found], previous, 3, now)}


def test_a_transition_time_moves_only_with_the_status() -> None:
    first = stored(STARTING, {}, NOW)
    second = stored(Condition("DecodeReady", FALSE, "ImagePull"), first, LATER)
    third = stored(Condition("DecodeReady", TRUE, "PodsReady"), second, LATER)
    (failing,), (ready,) = conditions_of(second), conditions_of(third)
    assert (failing["reason"], failing["lastTransitionTime"], failing["observedGeneration"]) == ("ImagePull", NOW, 3)
    assert (ready["status"], ready["lastTransitionTime"]) == ("True", LATER)


def test_the_time_of_another_condition_is_not_taken_over() -> None:
    first = stored(STARTING, {}, NOW)
    (other,) = conditions_of(stored(Condition("PrefillReady", FALSE, "PodsPending"), first, LATER))
    assert other["lastTransitionTime"] == LATER


def test_an_endless_message_is_cut() -> None:
    (found,) = conditions_of(stored(Condition("DecodeReady", FALSE, "ImagePull", "x" * 5000), {}, NOW))
    assert found["message"] == "x" * 2048


def test_a_status_that_somebody_has_garbled_has_no_conditions() -> None:
    assert conditions_of({"conditions": "none"}) == conditions_of({}) == []
    assert conditions_of({"conditions": [None, {"type": "Ready"}]}) == [{"type": "Ready"}]
