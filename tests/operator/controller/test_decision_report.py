"""A decision is shown in status, events and deletion costs, and written no more often than it says
something.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE, Decision
from disagg_operator.controller.decision_report import (
    DELETION_COST,
    deletion_costs,
    last_decision,
    scaled_note,
    shown,
    standing,
    to_carry_out,
)
from disagg_operator.status.events import NORMAL, Note

UP = Decision(2, 3, "QueueAboveTarget", "QueueDepth", 5.12345, 4.0)
HOLD = replace(UP, to=2, reason="AtTarget")
BLIND = Decision(2, 2, METRICS_UNAVAILABLE, "QueueDepth", None, 4.0)
NOW = "2026-01-01T00:00:00Z"
ENTRY = {
    "time": NOW,
    "signal": "QueueDepth",
    "from": 2,
    "to": 3,
    "reason": "QueueAboveTarget",
    "dryRun": False,
    "target": 4.0,
    "value": 5.123,
}


STANDS = {"time": NOW, "wanted": 2, "reason": "AtTarget", "needed": 3, "limitedBy": "GPUBudget", "message": "why"}
STANDING = replace(HOLD, numbers={"best": 3.0}, limit="GPUBudget", message="why")


@pytest.mark.parametrize(
    ("stored", "decision", "after_s", "expected"),
    [
        pytest.param(None, None, 0, None, id="nothing was decided"),
        pytest.param(STANDS, None, 59, STANDS, id="the last one stays"),
        pytest.param(None, STANDING, 0, STANDS, id="the first"),
        pytest.param(None, HOLD, 0, {"time": NOW, "wanted": 2, "reason": "AtTarget"}, id="by its queue, at no limit"),
        pytest.param(STANDS, replace(STANDING, message="other"), 59, STANDS, id="other words alone are not written"),
        pytest.param(STANDS, replace(STANDING, numbers={"best": 4.0}), 29, STANDS, id="another need, but too soon"),
        pytest.param(
            STANDS, replace(STANDING, numbers={"best": 4.0}), 30, STANDS | {"needed": 4}, id="another need, in time"
        ),
        pytest.param(
            STANDS, replace(STANDING, limit=""), 30, {k: v for k, v in STANDS.items() if k != "limitedBy"}, id="free"
        ),
        pytest.param(STANDS, replace(STANDING, to=3), 1, STANDS | {"wanted": 3}, id="another number at once"),
        pytest.param(
            STANDS | {"time": "?"}, replace(STANDING, reason="Enough"), 1, STANDS | {"reason": "Enough"}, id="no time"
        ),
    ],
)
def test_status_says_how_scaling_stands_but_not_with_every_sample(
    stored: dict[str, Any] | None, decision: Decision | None, after_s: int, expected: dict[str, Any] | None
) -> None:
    now = f"2026-01-01T00:00:{after_s:02d}Z"
    if expected is not None and expected != stored:
        expected = expected | {"time": now}
    assert standing(stored, decision, now) == expected


@pytest.mark.parametrize(
    ("decision", "live", "dry_run", "to"),
    [
        (None, 2, False, None),
        (UP, 2, False, 3),
        (UP, 2, True, None),
        (UP, 3, False, None),
        (UP, None, False, None),
        (HOLD, 2, False, None),
    ],
)
def test_a_decision_is_carried_out_once_and_for_the_size_it_was_made_for(
    decision: Decision | None, live: int | None, dry_run: bool, to: int | None
) -> None:
    assert to_carry_out(decision, live, dry_run) == to


BLIND_ENTRY = {"reason": METRICS_UNAVAILABLE, "from": 2, "to": 2, "dryRun": False}


@pytest.mark.parametrize(
    ("stored", "decision", "dry_run", "expected"),
    [
        pytest.param(None, None, False, None, id="none was made"),
        pytest.param(ENTRY, None, False, ENTRY, id="the last one stays"),
        pytest.param(None, UP, False, ENTRY, id="the first"),
        pytest.param(ENTRY | {"from": 1, "to": 2}, UP, False, ENTRY, id="the next"),
        pytest.param(ENTRY, HOLD, False, ENTRY, id="a hold is not written"),
        pytest.param(None, HOLD, False, None, id="not the first one either"),
        pytest.param(BLIND_ENTRY, BLIND, False, BLIND_ENTRY, id="still blind"),
        pytest.param(ENTRY | {"time": "earlier"}, UP, False, ENTRY, id="the same again in earnest is new"),
        pytest.param(
            ENTRY | {"time": "earlier", "dryRun": True},
            UP,
            True,
            ENTRY | {"time": "earlier", "dryRun": True},
            id="on trial it is not",
        ),
        pytest.param(ENTRY | {"dryRun": True}, UP, False, ENTRY, id="what was tried is now done"),
    ],
)
def test_status_keeps_the_last_decision_that_changed_something(
    stored: dict[str, Any] | None, decision: Decision | None, dry_run: bool, expected: dict[str, Any] | None
) -> None:
    assert last_decision(stored, decision, dry_run, NOW) == expected


def test_that_data_is_missing_is_told_and_that_it_is_back() -> None:
    blind = last_decision(ENTRY, BLIND, False, NOW)
    assert blind is not None
    assert (blind["reason"], "value" in blind) == (METRICS_UNAVAILABLE, False)
    seeing = last_decision(blind, HOLD, False, NOW)
    assert seeing is not None
    assert seeing["reason"] == "AtTarget"


def test_what_a_decision_says_of_itself_is_bounded() -> None:
    long = replace(UP, message="x" * 10_000, numbers={f"n{i:03}": float(i) for i in range(1000)}, target=0.0)
    entry = last_decision(None, long, False, NOW)
    assert entry is not None
    assert (len(entry["message"]), len(entry["numbers"]), "target" in entry) == (512, 24, False)
    assert list(entry["numbers"]) == sorted(entry["numbers"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.0, "0"), (4.0, "4"), (4.5, "4.5"), (1 / 3, "0.333"), (10.0, "10"), (100.0, "100")],
)
def test_a_number_is_shown_without_needless_digits(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_an_event_names_the_pool_the_reason_and_both_sizes() -> None:
    assert scaled_note("decode", UP) == Note(
        NORMAL, "ScaledUp", "decode: QueueDepth=5.123 target 4: 2 -> 3 (QueueAboveTarget)"
    )
    down = replace(UP, to=1, reason="QueueBelowTarget", message="few requests")
    assert scaled_note("decode", down) == Note(NORMAL, "ScaledDown", "decode: few requests: 2 -> 1 (QueueBelowTarget)")


def pod(name: str, cost: str | None = None) -> dict[str, Any]:
    return {"metadata": {"name": name, "annotations": {} if cost is None else {DELETION_COST: cost}}}


def test_the_pod_with_the_fewest_requests_goes_first_and_an_unknown_one_last() -> None:
    costs = deletion_costs([pod("a"), pod("b"), pod("c")], {"a": 3.0, "b": 1.9})
    assert costs == {"a": "3", "b": "1", "c": "3"}


def test_a_cost_that_stands_already_is_not_written_again() -> None:
    assert deletion_costs([pod("a", "3"), pod("b", "3")], {"a": 3.0, "b": 1.0}) == {"b": "1"}
    assert deletion_costs([pod("a")], {}) == {"a": "0"}


@given(st.dictionaries(st.sampled_from("abcd"), st.floats(0, 1e12), max_size=4))
def test_a_cost_is_one_that_kubernetes_takes(loads: dict[str, float]) -> None:
    for cost in deletion_costs([pod(name) for name in "abcd"], loads).values():
        assert 0 <= int(cost) <= 1_000_000


def test_what_is_not_known_is_left_out_of_status() -> None:
    unknown = replace(UP, value=math.nan, numbers={"a": math.nan, "b": 1.0, "c": math.inf})
    entry = last_decision(None, unknown, False, NOW)
    assert entry == {name: value for name, value in ENTRY.items() if name != "value"} | {"numbers": {"b": 1.0}}
    json.dumps(entry, allow_nan=False)
    assert "numbers" not in (last_decision(None, replace(UP, numbers={"a": math.nan}), False, NOW) or {})
    assert shown(math.nan) == "unknown"
