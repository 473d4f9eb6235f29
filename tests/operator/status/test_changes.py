"""Tests of the Events about changes of a status: each cause is reported once, as is good news."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.status.changes import of_change
from disagg_operator.status.events import NORMAL, WARNING, Note


def condition(kind: str, status: str, reason: str, message: str = "why") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def status(*conditions: dict[str, str], **more: Any) -> dict[str, Any]:
    return {"conditions": list(conditions), **more}


PULL = condition("DecodeReady", "False", "ImagePull", "no such image")
PULLED = Note(WARNING, "ImagePullFailed", "DecodeReady: no such image")


@pytest.mark.parametrize(
    ("before", "after", "notes"),
    [
        pytest.param({}, status(PULL), [PULLED], id="a new cause"),
        pytest.param({"conditions": None}, status(PULL), [PULLED], id="nothing was stored"),
        pytest.param(status(PULL), status(PULL), [], id="the same again"),
        pytest.param(status(PULL), status(PULL | {"message": "other words"}), [], id="other words for the same"),
        pytest.param(status(PULL | {"status": "Unknown"}), status(PULL), [PULLED], id="the cause is certain now"),
        pytest.param(
            status(), status(PULL, PULL | {"type": "PrefillReady"}), [PULLED], id="a cause of two pools is told once"
        ),
        pytest.param(status(), status(condition("Ready", "False", "ImagePull")), [], id="a summary repeats its cause"),
        pytest.param(
            status(),
            status(condition("Degraded", "True", "TransportFallback", "tcp")),
            [Note(WARNING, "TransportFallback", "Degraded: tcp")],
            id="a fallback shows in a summary alone",
        ),
        pytest.param(
            status(), status(condition("DecodeReady", "False", "Progressing")), [], id="no cause for a warning"
        ),
        pytest.param(
            status(),
            status(condition("Accepted", "False", "UnsupportedParallelism")),
            [Note(WARNING, "InvalidSpec", "Accepted: why")],
            id="two reasons have one event",
        ),
        pytest.param(
            status(condition("ObjectivesFeasible", "True", "WithinReach")),
            status(condition("ObjectivesFeasible", "False", "ObjectivesInfeasible")),
            [Note(WARNING, "ObjectivesInfeasible", "ObjectivesFeasible: why")],
            id="an objective is out of reach",
        ),
        pytest.param(status(PULL), status(condition("DecodeReady", "True", "Ready")), [], id="a cause that has gone"),
    ],
)
def test_a_cause_is_told_when_it_is_new(before: dict[str, Any], after: dict[str, Any], notes: list[Note]) -> None:
    assert of_change(before, after) == notes


READY = condition("Ready", "True", "Ready")
STARTED = Note(NORMAL, "RolloutStarted", "revision b replaces a")
COMPLETED = Note(NORMAL, "RolloutCompleted", "all pods are of revision b")
UPDATE = condition("RuntimeUpToDate", "False", "RuntimeUpdateAvailable", "w:3")
AVAILABLE = Note(NORMAL, "RuntimeUpdateAvailable", "w:3")
SERVING = Note(NORMAL, "Ready", "serving at http://u/v1")


@pytest.mark.parametrize(
    ("before", "after", "notes"),
    [
        pytest.param(
            {"revision": {"current": "a", "update": "a"}},
            {"revision": {"current": "a", "update": "b"}},
            [STARTED],
            id="a rollout starts",
        ),
        pytest.param(
            {"revision": {"current": "a", "update": "b"}},
            {"revision": {"current": "b", "update": "b"}},
            [COMPLETED],
            id="it ends",
        ),
        pytest.param({}, {"revision": {"current": "", "update": "b"}}, [], id="the first revision replaces none"),
        pytest.param(
            {"revision": {"update": "b"}}, {"revision": {"current": "b", "update": "b"}}, [], id="and completes nothing"
        ),
        pytest.param({"revision": None}, {"revision": None}, [], id="no revision is known"),
        pytest.param({}, status(UPDATE), [AVAILABLE], id="an update is available"),
        pytest.param(status(UPDATE), status(UPDATE), [], id="it was available before"),
        pytest.param(status(UPDATE | {"message": "w:2"}), status(UPDATE), [AVAILABLE], id="another update"),
        pytest.param(status(UPDATE), status(UPDATE | {"reason": "UpToDate"}), [], id="it was made"),
        pytest.param({}, status(READY, url="http://u/v1"), [SERVING], id="it is ready"),
        pytest.param(
            status(READY | {"status": "False"}), status(READY, url="http://u/v1"), [SERVING], id="it is ready again"
        ),
        pytest.param(status(READY), status(READY, url="http://u/v1"), [], id="it was ready before"),
        pytest.param(status(READY), status(READY | {"status": "False"}), [], id="it is not ready any more"),
    ],
)
def test_good_news_are_told_when_they_come(before: dict[str, Any], after: dict[str, Any], notes: list[Note]) -> None:
    assert of_change(before, after) == notes


def test_events_tell_of_both_ways_to_zero_and_back() -> None:
    there = status(condition("ScaledToZero", "True", "Idle", "nobody asks"))
    pools = [{"name": "prefill", "desired": 1}, {"name": "decode", "desired": 2}]
    assert of_change(status(), there) == [Note(NORMAL, "ScaledToZero", "nobody asks")]
    assert of_change(there, status(pools=pools)) == [Note(NORMAL, "Woken", "prefill: 0 -> 1, decode: 0 -> 2")]
    assert of_change(there, there) == []
    # Why it stays is no event, and no second one of its rollout.
    stays = status(condition("ScaledToZero", "False", "CanaryInconclusive", "it waits for a person"), pools=pools)
    assert of_change(status(), stays) == of_change(stays, status(pools=pools)) == []
    assert of_change(stays, there) == [Note(NORMAL, "ScaledToZero", "nobody asks")]
    # A suspension does not wake anybody.
    assert of_change(there, status(pools=[p | {"desired": 0} for p in pools])) == []
