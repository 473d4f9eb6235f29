"""Tests of what status says of a deployment at zero."""

from __future__ import annotations

import math
from typing import Any

import pytest

from disagg_operator.status.zero_state import reason_of, serves, settled, told


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
    [("RolloutComplete", 3, True), ("RolloutComplete", 2, False), ("RolloutPaused", 3, False)],
)
def test_nothing_moves_once_the_present_spec_is_rolled_out(reason: str, observed: int, expected: bool) -> None:
    found = status(("Ready", "True", reason), ("Progressing", "True", reason), observedGeneration=observed)
    assert settled({"metadata": {"generation": 3}, "status": found}) is expected
    assert not settled({"metadata": {"generation": 3}})
