"""Tests of what status says of a deployment at zero."""

from __future__ import annotations

import math
from typing import Any

import pytest

from disagg_operator.status.zero_state import hindrance, reason_of, serves, settled, silence, told


def status(*conditions: tuple[str, str, str], since: str = "2026-01-01T00:00:00Z", **more: Any) -> dict[str, Any]:
    found = [
        {"type": t, "status": s, "reason": r, "message": f"{r} it is", "lastTransitionTime": since}
        for t, s, r in conditions
    ]
    return {"conditions": found, **more}


def test_the_reason_is_kept_for_as_long_as_it_lasts() -> None:
    assert reason_of(650.0, 600.0, {})[0] == "Idle"
    assert "650 s" in reason_of(650.0, 600.0, {})[1]
    for idle_s in (20.0, math.nan):
        assert reason_of(idle_s, 600.0, {})[0] == "PoolsSetToZero"
    stored = status(("ScaledToZero", "True", "Idle"))
    assert reason_of(math.nan, 600.0, stored) == ("Idle", "Idle it is")
    assert reason_of(math.nan, 600.0, status(("ScaledToZero", "False", "Idle")))[0] == "PoolsSetToZero"


@pytest.mark.parametrize(
    ("now_s", "span"),
    [(30, "for 30 s"), (150, "for 2 min"), (7500, "for 2 h 5 min"), (-9, "for 0 s")],
)
def test_people_are_told_since_when(now_s: float, span: str) -> None:
    words = told(status(("ScaledToZero", "True", "Idle")), 1767225600 + now_s)
    assert words == f"Both pools are at zero {span}: Idle it is."
    assert told(status(("ScaledToZero", "True", "Idle"), since="?"), 0.0) == "Both pools are at zero: Idle it is."
    assert told(status(("Ready", "True", "Ready")), now_s) is told({}, now_s) is None


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (("Available", "True", "PairsHealthy"), True),
        (("Available", "True", "ScaledToZero"), False),
        (("Available", "False", "NoHealthyPair"), False),
        (("Ready", "True", "Ready"), False),
    ],
)
def test_it_serves_when_workers_do(condition: tuple[str, str, str], expected: bool) -> None:
    assert serves(status(condition)) is expected


@pytest.mark.parametrize(
    ("reason", "observed", "expected"),
    [
        ("RolloutComplete", 3, True),
        ("RolloutComplete", 2, False),
        ("RolloutPaused", 3, False),
        ("RolledBack", 3, True),
        ("CanaryFailed", 3, True),
        ("RolledBack", 2, False),
        ("CanaryInconclusive", 3, False),
        ("ProgressDeadlineExceeded", 3, False),
    ],
)
def test_nothing_moves_once_the_present_spec_is_rolled_out(reason: str, observed: int, expected: bool) -> None:
    found = status(("Ready", "True", reason), ("Progressing", "True", reason), observedGeneration=observed)
    assert settled({"metadata": {"generation": 3}, "status": found}) is expected
    assert not settled({"metadata": {"generation": 3}})


@pytest.mark.parametrize(("current", "expected"), [(2, True), (3, False)])
def test_what_goes_back_is_settled_once_its_pools_are_whole(current: int, expected: bool) -> None:
    pools = [{"name": "prefill", "desired": 1, "current": 1, "ready": 1}]
    pools.append({"name": "decode", "desired": 2, "current": current, "ready": 2})
    found = status(("Progressing", "False", "RolledBack"), observedGeneration=3, pools=pools)
    assert settled({"metadata": {"generation": 3}, "status": found}) is expected


@pytest.mark.parametrize(
    ("reason", "why", "words"),
    [
        ("CanaryInconclusive", {}, "waits for a person"),
        ("RolloutPaused", {}, "disagg rollout resume"),
        ("ProgressDeadlineExceeded", {}, "has stalled"),
        ("RollingOut", {"due": True}, "a rollout is not at its end (RollingOut)"),
        ("DryRun", {"dry_run": True, "due": True}, "scaling.dryRun is set"),
        ("PeakNear", {"due": True, "flips": True}, "scaling.schedule asks for workers"),
        ("RoleFlip", {"flips": True}, "a worker changes its role"),
    ],
)
def test_why_a_deployment_stays_although_nobody_asks(reason: str, why: dict[str, bool], words: str) -> None:
    rolls = reason if reason not in ("DryRun", "PeakNear", "RoleFlip") else "RolledBack"
    found = status(("Ready", "True", "Ready"), ("Progressing", "True", rolls), observedGeneration=3)
    given = {"dry_run": False, "due": False, "flips": False} | why
    told_ = hindrance({"metadata": {"generation": 3}, "status": found}, **given)
    assert told_ is not None
    assert (told_[0], words in told_[1]) == (reason, True)


def test_nothing_keeps_a_deployment_that_may_go_and_what_is_unknown_does() -> None:
    found = status(("Progressing", "True", "RolloutComplete"), observedGeneration=3)
    free = {"dry_run": False, "due": False, "flips": False}
    assert hindrance({"metadata": {"generation": 3}, "status": found}, **free) is None
    unknown = hindrance({"metadata": {"generation": 3}}, **free)
    assert unknown is not None
    assert unknown[0] == "Unknown"
    assert silence()[0] == "RoutersSilent"


def test_people_are_told_why_it_stays() -> None:
    assert told(status(("ScaledToZero", "False", "DryRun")), 0.0) == "Both pools are not at zero: DryRun it is."
