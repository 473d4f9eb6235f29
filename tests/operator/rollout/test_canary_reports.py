"""What the routers have counted, over routers, minutes and restarts."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.rollout.canary_reports import CanaryReports, noted
from disagg_operator.rollout.canary_verdict import Comparison, Counts


def state(router: str, *minutes: Any, name: str = "r2", through: Any = 99) -> dict[str, Any]:
    canary = {"revision": name, "percent": 10, "through": through, "minutes": [*minutes]}
    return {"incarnation": router, "canary": canary}


NONE = CanaryReports()
NOTHING = Comparison(coming=None)


def test_only_minutes_count_in_which_both_had_requests() -> None:
    found = noted(NONE, [state("a", [3, 0, 0, 9, 9], [2, 3, 3, 0, 0], [1, 5, 4, 50, 49], [0, 2, 2, 2, 2])])
    assert found.evidence("r2") == Comparison(((2, 2, 2, 2), (5, 4, 50, 49)), coming=7)
    assert (found.evidence("r2").new, found.evidence("r2").old) == (Counts(7, 6), Counts(52, 51))


def test_the_routers_are_summed_before_a_minute_is_judged() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 0, 0]), state("b", [1, 0, 0, 7, 7])])
    assert found.evidence("r2") == Comparison(((5, 4, 7, 7),), coming=5)


def test_a_minute_counts_once_no_router_that_answers_waits_for_a_request_of_it_or_of_one_before() -> None:
    rows = [1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [3, 4, 4, 4, 4]
    found = noted(NONE, [state("a", *rows, through=3), state("b", *rows, through=1)])
    assert found.evidence("r2") == Comparison(((2, 2, 2, 2),), coming=14)
    # A router that is gone is not waited for; what it had waited for never counts.
    found = noted(found, [state("a", *rows, through=3)])
    assert found.evidence("r2") == Comparison(((2, 2, 2, 2), (2, 2, 2, 2), (4, 4, 4, 4)), coming=14)
    # Nor is one that does not know the trial yet.
    found = noted(found, [state("a", *rows, through=2), state("c", *rows, through=0, name="r1")])
    assert found.evidence("r2").minutes == ((2, 2, 2, 2), (2, 2, 2, 2))


def test_clocks_that_differ_by_hours_only_delay() -> None:
    found = noted(NONE, [state("a", [100, 5, 5, 5, 5], through=100), state("b", [40, 2, 2, 2, 2], through=40)])
    assert found.evidence("r2") == Comparison(((2, 2, 2, 2),), coming=7)
    found = noted(found, [state("a", [100, 5, 5, 5, 5], through=170), state("b", [40, 2, 2, 2, 2], through=100)])
    assert found.evidence("r2").new == Counts(7, 7)


def test_the_same_minute_is_told_again_with_more_and_a_router_that_is_gone_stays_known() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 5, 5]), state("b", [1, 1, 1, 1, 1])])
    found = noted(found, [state("a", [1, 6, 5, 6, 6], [2, 1, 1, 1, 1])])
    found = noted(found, [])
    assert found.evidence("r2").minutes == ((7, 6, 7, 7), (1, 1, 1, 1))


def test_another_trial_begins_anew_whichever_router_knows_it_first() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 5, 5])])
    late = [state("a", [1, 5, 4, 5, 5]), state("b", [2, 1, 1, 1, 1], name="r3")]
    for _ in range(2):
        found = noted(found, late)
        assert found.evidence("r3").new == Counts(1, 1)
    found = noted(found, [state("a", [3, 2, 2, 2, 2], name="r3")])
    assert found.evidence("r3").new == Counts(3, 3)
    assert found.evidence("r2") == NOTHING


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"incarnation": "a", "canary": None},
        {"incarnation": 5, "canary": {"revision": "r2", "through": 9, "minutes": []}},
        {"incarnation": "a", "canary": {"revision": "", "through": 9, "minutes": []}},
        {"incarnation": "a", "canary": {"revision": ["r2"], "through": 9, "minutes": []}},
        {"incarnation": "a", "canary": {"revision": "r2", "through": 9, "minutes": {}}},
        {"incarnation": "a", "canary": {"revision": "r2", "minutes": [[1, 1, 1, 1, 1]]}},
        *(state("a", [1, 1, 1, 1, 1], through=through) for through in (None, "9", True, 9.5, -1, 1 << 60)),
        *(
            state("a", row)
            for row in ([], [1, 1, 1, 1], [1, 1, 2, 1, 1], [1, 1, 1, 1, 2], [1, -1, -1, 1, 1], [1, True, 1, 1, 1],
                        [1, 1 << 60, 1, 1, 1], [1, "1", 1, 1, 1], "12345")
        ),
    ],
)  # fmt: skip
def test_what_is_not_readable_counts_for_nothing(bad: dict[str, Any]) -> None:
    assert noted(NONE, [bad]).evidence("r2") in (NOTHING, Comparison())


def test_what_is_remembered_is_bounded() -> None:
    found = NONE
    for n in range(300):
        found = noted(found, [state(f"router-{n}", [n, 1, 1, 1, 1])])
    assert len(found.told["r2"]) == 256
    rows = [[minute, 1, 1, 1, 1] for minute in range(5000)]
    assert len(noted(NONE, [state("a", *rows)]).told["r2"]["a"].minutes) == 3000
