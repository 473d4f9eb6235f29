"""The status of a resource whose reconcile fails."""

from __future__ import annotations

from typing import Any

from disagg_operator.status import changes, conditions
from disagg_operator.status.unsettled import API_SERVER_ERROR, failed

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def by_type(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in status["conditions"]}


def test_a_spec_that_was_not_judged_is_neither_accepted_nor_ready() -> None:
    found = by_type(first := failed(2, API_SERVER_ERROR, "webhook", {}, NOW))
    assert {k: (c["status"], c["reason"], c["observedGeneration"]) for k, c in found.items()} == {
        "Reconciled": ("False", API_SERVER_ERROR, 2),
        "Accepted": ("Unknown", API_SERVER_ERROR, 2),
        "Ready": ("False", API_SERVER_ERROR, 2),
    }
    assert first["observedGeneration"] == 2
    assert failed(2, API_SERVER_ERROR, "webhook", first, LATER) == first
    assert [note.reason for note in changes.of_change({}, first)] == ["ReconcileFailed"]


def test_a_judgement_ends_it() -> None:
    refused = conditions.refused(2, "InvalidSpec", "m", failed(2, API_SERVER_ERROR, "webhook", {}, NOW), LATER)
    assert list(by_type(refused)) == ["Accepted", "Ready"]
    assert by_type(refused)["Accepted"]["status"] == "False"


def test_what_was_judged_stays_as_it_was() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "", "lastTransitionTime": NOW}
    stored = {"observedGeneration": 2, "conditions": [ready], "url": "u"}
    found = failed(2, API_SERVER_ERROR, "webhook", stored, LATER)
    assert by_type(found)["Ready"] == ready
    assert (by_type(found)["Reconciled"]["lastTransitionTime"], found["url"]) == (LATER, "u")
