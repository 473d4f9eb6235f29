"""What a router counts of a canary, as the operator reads it: what hangs, and long answers."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from disagg_operator.rollout.canary_reports import CanaryReports, noted
from disagg_operator.rollout.canary_verdict import CONTINUE, PROMOTE, REVERT, CanaryRules, verdict
from disagg_router.workers.canary import Canary
from disagg_router.workers.canary_tally import CanaryTally, Outcome
from disagg_wire.canary import CanaryWord

CANARY = Canary({"decode": CanaryWord(10, "new", trial="1")})
RULES = CanaryRules(100, 3600.0)
LOOK_S = 5

Kind = Callable[[random.Random, bool], tuple[float, bool]]
"""Draws how long a request takes, and whether it has then missed, given whether it is new."""


def some_hang(rng: random.Random, new: bool) -> tuple[float, bool]:
    hangs = new and rng.random() < 0.2
    return (120.0, True) if hangs else (rng.uniform(1, 20), False)


def long_answers(rng: random.Random, new: bool) -> tuple[float, bool]:
    return rng.uniform(1, 900), rng.random() < 0.01


def slow_when_missed(rng: random.Random, new: bool) -> tuple[float, bool]:
    missed = rng.random() < 0.2
    return (90.0 if missed else 2.0), missed


def verdict_of(kind: Kind, per_s: int, seed: int) -> tuple[str, int]:
    """Return the verdict on a canary with so many requests a second, and the second of it."""
    rng, tally, reports = random.Random(seed), CanaryTally(180.0), CanaryReports()
    ends: dict[int, list[Callable[[], None]]] = {}
    for second in range(4000):
        for _ in range(per_s):
            new = rng.random() < 0.1
            took_s, missed = kind(rng, new)

            def judge(over: bool, new: bool = new, missed: bool = missed) -> Outcome:
                return Outcome(new, missed and over, settled=over)

            request = tally.begin(CANARY.name, float(second), judge)
            ends.setdefault(second + int(took_s), []).append(lambda request=request: tally.end(request))  # type: ignore[misc]
        for end in ends.pop(second, ()):
            end()
        if second % LOOK_S == 0:
            told = tally.to_json(CANARY, float(second))
            reports = noted(reports, [{"incarnation": "r", "canary": told}])
            found = verdict(reports.evidence(CANARY.name), RULES, float(second))
            if found != CONTINUE:
                return found, second
    raise AssertionError("no verdict")


@pytest.mark.parametrize("per_s", [20, 50])
def test_a_revision_some_of_whose_requests_hang_is_not_promoted_before_that_shows(per_s: int) -> None:
    found, second = verdict_of(some_hang, per_s, seed=1)
    assert found == REVERT
    assert second <= 60 + 125


def test_answers_that_take_minutes_delay_the_verdict_by_as_long_as_they_are_followed() -> None:
    found, second = verdict_of(long_answers, 20, seed=1)
    assert found == PROMOTE
    assert second <= 60 + 185


def test_a_revision_is_not_reverted_because_what_has_missed_is_known_late() -> None:
    assert [verdict_of(slow_when_missed, 20, seed)[0] for seed in range(20)].count(REVERT) <= 2
