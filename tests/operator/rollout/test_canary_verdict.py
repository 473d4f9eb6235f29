"""The verdict on a canary: tables, the exact distribution, and how often a good one goes back."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.rollout.canary_verdict import (
    CONTINUE,
    INCONCLUSIVE,
    PROMOTE,
    REVERT,
    CanaryRules,
    Comparison,
    Counts,
    chance,
    verdict,
    words_of,
)

RULES = CanaryRules(100, 3600.0)


def seen(new: tuple[int, int], old: tuple[int, int]) -> Comparison:
    """Return the evidence of (ended, missed) of both."""
    return Comparison(*(Counts(ended, ended - missed) for ended, missed in (new, old)))


@pytest.mark.parametrize(
    ("what", "new", "old", "passed_s", "expected"),
    [
        ("nothing yet", (0, 0), (0, 0), 0, CONTINUE),
        ("nothing at all", (0, 0), (0, 0), 3600, INCONCLUSIVE),
        ("alike", (100, 1), (900, 9), 60, PROMOTE),
        ("better", (100, 0), (900, 90), 60, PROMOTE),
        ("none missed", (100, 0), (900, 0), 60, PROMOTE),
        ("all missed, as before", (100, 100), (900, 900), 60, PROMOTE),
        ("within the noise", (100, 3), (900, 9), 60, PROMOTE),
        ("one more than before, near 100 %", (100, 1), (900, 0), 60, PROMOTE),
        ("two more than before, near 100 %", (100, 2), (900, 0), 60, REVERT),
        ("worse", (100, 6), (900, 9), 60, REVERT),
        ("much worse", (100, 50), (900, 9), 60, REVERT),
        ("the old one has too few", (500, 5), (99, 0), 60, CONTINUE),
        ("the old one has too few by the end", (500, 5), (99, 0), 3600, INCONCLUSIVE),
        ("the old one has just enough", (500, 5), (100, 0), 3600, PROMOTE),
        ("one short", (99, 1), (900, 9), 3599, CONTINUE),
        ("one short by the end", (99, 1), (900, 9), 3600, INCONCLUSIVE),
        ("just enough after the end", (100, 1), (900, 9), 9999, PROMOTE),
        ("bad luck with the first", (1, 1), (9, 0), 5, CONTINUE),
        ("clearly broken", (5, 5), (45, 0), 5, REVERT),
        ("worse, but not clearly before there are enough", (50, 3), (450, 4), 5, CONTINUE),
        ("everybody is down", (20, 20), (180, 180), 5, CONTINUE),
    ],
)
def test_what_follows(what: str, new: tuple[int, int], old: tuple[int, int], passed_s: float, expected: str) -> None:
    assert verdict(seen(new, old), RULES, passed_s) == expected


def exact(evidence: Comparison) -> Fraction:
    """Return the same probability in whole numbers."""
    n, m = evidence.new.ended, evidence.old.ended
    missed = evidence.new.missed + evidence.old.missed
    ways = sum(
        math.comb(missed, k) * math.comb(n + m - missed, n - k) for k in range(evidence.new.missed, min(n, missed) + 1)
    )
    return Fraction(ways, math.comb(n + m, n))


@given(st.integers(0, 60), st.integers(0, 60), st.data())
def test_the_probability_is_that_of_the_hypergeometric_distribution(n: int, m: int, data: st.DataObject) -> None:
    evidence = seen((n, data.draw(st.integers(0, n))), (m, data.draw(st.integers(0, m))))
    assert chance(evidence) == pytest.approx(float(exact(evidence)), rel=1e-9, abs=1e-15)


@given(st.integers(1, 10_000), st.integers(1, 100_000), st.data())
def test_more_misses_are_never_less_suspicious(n: int, m: int, data: st.DataObject) -> None:
    missed, old = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, m))
    one, more = chance(seen((n, missed), (m, old))), chance(seen((n, missed + 1), (m, old)))
    assert 0.0 <= more <= one + 1e-9 <= 1.0 + 1e-9


@given(st.integers(0, 300), st.integers(0, 300), st.data(), st.floats(0, 1e6))
def test_it_always_ends_and_what_is_as_good_never_goes_back(
    n: int, m: int, data: st.DataObject, passed_s: float
) -> None:
    new, old = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    found = verdict(seen((n, new), (m, old)), RULES, passed_s)
    if passed_s >= RULES.max_duration_s:
        assert found != CONTINUE
    if n and m and new * m <= old * n:
        assert found != REVERT
    if min(n, m) >= RULES.min_requests:
        assert found in (PROMOTE, REVERT)
    if found == PROMOTE:
        assert min(n, m) >= RULES.min_requests


@pytest.mark.parametrize("attained", [0.5, 0.95, 0.99, 0.999])
def test_a_revision_that_is_as_good_goes_back_in_at_most_5_percent_of_all_canaries(attained: float) -> None:
    """Each canary is looked at after every few requests, as the operator does."""
    rng, back, canaries = random.Random(7), 0, 400
    rules = CanaryRules(50, 1e9)
    for _ in range(canaries):
        new = old = (0, 0)
        found = CONTINUE
        while found == CONTINUE:
            count = rng.randint(1, 4)
            new = new[0] + count, new[1] + sum(rng.random() > attained for _ in range(count))
            old = old[0] + 4 * count, old[1] + sum(rng.random() > attained for _ in range(4 * count))
            found = verdict(seen(new, old), rules, 0.0)
        back += found == REVERT
    # 5 % of 400, and three standard deviations.
    assert back <= 20 + 13


def test_a_revision_that_is_clearly_worse_goes_back() -> None:
    rng, back = random.Random(7), 0
    for _ in range(200):
        new, old = (sum(rng.random() > p for _ in range(n)) for p, n in ((0.9, 100), (0.99, 900)))
        back += verdict(seen((100, new), (900, old)), RULES, 0.0) == REVERT
    assert back >= 190


def test_the_words() -> None:
    assert words_of(Comparison(), RULES, 10) == "canary: 10 % of the requests, 0 of 100"
    counted = seen((57, 1), (2000, 1))
    assert words_of(counted, RULES, 10) == (
        "canary: 10 % of the requests, 57 of 100, attainment 98.2 % new, 99.9 % old"
    )
