"""What the routers have counted, over routers, minutes and restarts."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.rollout.canary_reports import CanaryReports, noted
from disagg_operator.rollout.canary_verdict import Comparison, Counts


def state(router: str, *minutes: Any, revision: str = "r2") -> dict[str, Any]:
    return {"incarnation": router, "canary": {"revision": revision, "percent": 10, "minutes": [*minutes]}}


NONE = CanaryReports()


def test_only_minutes_count_in_which_both_had_requests() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 50, 49], [2, 3, 3, 0, 0], [3, 0, 0, 9, 9])])
    assert found.evidence("r2", 0.0) == Comparison(Counts(5, 4), Counts(50, 49))


def test_the_routers_are_summed_before_a_minute_is_judged() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 0, 0]), state("b", [1, 0, 0, 7, 7])])
    assert found.evidence("r2", 0.0) == Comparison(Counts(5, 4), Counts(7, 7))


def test_what_was_before_the_canary_does_not_count_but_its_first_minute_does() -> None:
    found = noted(NONE, [state("a", [1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [3, 4, 4, 4, 4])])
    assert found.evidence("r2", 150.0).new == Counts(6, 6)


def test_the_same_minute_is_told_again_with_more_and_a_router_that_is_gone_stays_known() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 5, 5]), state("b", [1, 1, 1, 1, 1])])
    found = noted(found, [state("a", [1, 6, 5, 6, 6], [2, 1, 1, 1, 1])])
    found = noted(found, [])
    assert found.evidence("r2", 0.0) == Comparison(Counts(8, 7), Counts(8, 8))


def test_another_revision_begins_anew_whichever_router_knows_it_first() -> None:
    found = noted(NONE, [state("a", [1, 5, 4, 5, 5])])
    late = [state("a", [1, 5, 4, 5, 5]), state("b", [2, 1, 1, 1, 1], revision="r3")]
    for _ in range(2):
        found = noted(found, late)
        assert found.evidence("r3", 0.0).new == Counts(1, 1)
    found = noted(found, [state("a", [3, 2, 2, 2, 2], revision="r3")])
    assert found.evidence("r3", 0.0).new == Counts(3, 3)
    assert found.evidence("r2", 0.0) == Comparison()


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"incarnation": "a", "canary": None},
        {"incarnation": 5, "canary": {"revision": "r2", "minutes": []}},
        {"incarnation": "a", "canary": {"revision": "", "minutes": []}},
        {"incarnation": "a", "canary": {"revision": ["r2"], "minutes": []}},
        {"incarnation": "a", "canary": {"revision": "r2", "minutes": {}}},
        *(
            state("a", row)
            for row in ([], [1, 1, 1, 1], [1, 1, 2, 1, 1], [1, 1, 1, 1, 2], [1, -1, -1, 1, 1], [1, True, 1, 1, 1],
                        [1, 1 << 60, 1, 1, 1], [1, "1", 1, 1, 1], "12345")
        ),
    ],
)  # fmt: skip
def test_what_is_not_readable_counts_for_nothing(bad: dict[str, Any]) -> None:
    assert noted(NONE, [bad]).evidence("r2", 0.0) == Comparison()


def test_what_is_remembered_is_bounded() -> None:
    found = NONE
    for n in range(300):
        found = noted(found, [state(f"router-{n}", [n, 1, 1, 1, 1])])
    assert len(found.told["r2"]) == 256
    rows = [[minute, 1, 1, 1, 1] for minute in range(5000)]
    assert len(noted(NONE, [state("a", *rows)]).told["r2"]["a"]) == 3000
