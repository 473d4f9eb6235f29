"""The verdict on a canary: tables, the exact distribution, and how often a good one goes back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.rollout.canary_verdict import (
    CONTINUE,
    INCONCLUSIVE,
    LATE_S,
    PROMOTE,
    REVERT,
    CanaryRules,
    Comparison,
    Minute,
    chance,
    verdict,
    words_of,
)

RULES = CanaryRules(100, 3600.0)


def minute(new: tuple[int, int], old: tuple[int, int]) -> Minute:
    """Return a minute with (requests, missed) of both."""
    return new[0], new[0] - new[1], old[0], old[0] - old[1]


def seen(new: tuple[int, int], old: tuple[int, int]) -> Comparison:
    """Return the evidence of one minute, or of none if one had no requests in it."""
    return Comparison((minute(new, old),) if new[0] and old[0] else (), min(new[0], old[0]))


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


@pytest.mark.parametrize(
    ("coming", "passed_s", "expected"),
    [
        (100, 3600, CONTINUE),
        (99, 3600, INCONCLUSIVE),
        (100, 3600 + LATE_S - 1, CONTINUE),
        (100, 3600 + LATE_S, INCONCLUSIVE),
        (None, 3600 + LATE_S - 1, CONTINUE),
        (None, 3600 + LATE_S, INCONCLUSIVE),
    ],
)
def test_requests_that_have_come_by_the_end_are_waited_for_a_while_and_so_are_routers(
    coming: int | None, passed_s: float, expected: str
) -> None:
    minutes = () if coming is None else (minute((57, 1), (900, 9)),)
    assert verdict(Comparison(minutes, coming), RULES, passed_s) == expected


def test_the_levels_of_all_looks_add_up_to_one_percent() -> None:
    """One more minute with nothing but met requests does not change the probability."""
    new = next(n for n in range(1, 100) if verdict(seen((n, n), (1000, 0)), RULES, 0.0) == REVERT)
    broken, nothing = minute((new, new), (1000, 0)), minute((1, 0), (9, 0))
    after = [verdict(Comparison((broken, *[nothing] * n)), RULES, 0.0) for n in range(60)]
    assert after[0] == REVERT
    last = after.index(CONTINUE)
    assert set(after[last:]) == {CONTINUE}
    assert chance((broken,)) <= 0.01 / (last * (last + 1))
    assert chance((broken,)) > 0.01 / ((last + 1) * (last + 2))
    assert sum(0.01 / (n * (n + 1)) for n in range(1, 100_000)) <= 0.01


def exact(*minutes: Minute) -> Fraction:
    """Return the same probability in whole numbers, over all ways in which the misses fall."""
    ways = {0: Fraction(1)}
    for new, new_met, old, old_met in minutes:
        missed = new + old - new_met - old_met
        more = {
            k: Fraction(math.comb(missed, k) * math.comb(new + old - missed, new - k), math.comb(new + old, new))
            for k in range(max(0, missed - old), min(new, missed) + 1)
        }
        found: dict[int, Fraction] = {}
        for a, b in ((a, b) for a in ways for b in more):
            found[a + b] = found.get(a + b, Fraction(0)) + ways[a] * more[b]
        ways = found
    seen_ = sum(m[0] - m[1] for m in minutes)
    return sum((part for k, part in ways.items() if k >= seen_), Fraction(0))


@st.composite
def some_minute(draw: st.DrawFn, most: int = 25) -> Minute:
    new, old = draw(st.integers(1, most)), draw(st.integers(1, most))
    return new, draw(st.integers(0, new)), old, draw(st.integers(0, old))


@given(st.lists(some_minute(), min_size=1, max_size=4))
def test_the_probability_is_that_of_the_sum_of_hypergeometric_distributions(minutes: list[Minute]) -> None:
    assert chance(tuple(minutes)) == pytest.approx(float(exact(*minutes)), rel=1e-7, abs=1e-12)


@given(st.lists(some_minute(10_000), min_size=1, max_size=5))
def test_more_misses_are_never_less_suspicious(minutes: list[Minute]) -> None:
    first, *rest = minutes
    worse = first[0], max(0, first[1] - 1), first[2], first[3]
    one, more = chance((first, *rest)), chance((worse, *rest))
    assert 0.0 <= more <= one + 1e-2 <= 1.0 + 1e-2


def test_with_many_misses_it_is_as_good_as_normal() -> None:
    def minutes(more: int) -> tuple[Minute, ...]:
        return tuple(minute((1000, 300 + more), (3000, 900 - more)) for _ in range(20))

    few, many = minutes(0)[:12], minutes(0)
    assert chance(few) == pytest.approx(0.5, abs=0.02)
    assert chance(many) == pytest.approx(0.5, abs=0.02)
    assert chance(minutes(6)[:12]) > 0.05 > chance(minutes(6))
    assert chance(minutes(15)) < 1e-5


@given(st.integers(0, 300), st.integers(0, 300), st.data(), st.floats(0, 1e6))
def test_it_always_ends_and_what_is_as_good_never_goes_back(
    n: int, m: int, data: st.DataObject, passed_s: float
) -> None:
    new, old = data.draw(st.integers(0, n)), data.draw(st.integers(0, m))
    evidence = seen((n, new), (m, old))
    found = verdict(evidence, RULES, passed_s)
    if passed_s >= RULES.max_duration_s + LATE_S:
        assert found != CONTINUE
    if new * m <= old * n:
        assert found != REVERT
    if min(n, m) >= RULES.min_requests:
        assert found in (PROMOTE, REVERT)
    if found == PROMOTE:
        assert min(n, m) >= RULES.min_requests


Service = Callable[[random.Random], Iterator[tuple[int, int, float]]]
"""Yields the new and the old requests of each minute, and the part of both that misses."""


def steady(attained: float) -> Service:
    def service(rng: random.Random) -> Iterator[tuple[int, int, float]]:
        while True:
            yield rng.randint(0, 8), rng.randint(10, 50), 1 - attained

    return service


def few_new_many_old(rng: random.Random) -> Iterator[tuple[int, int, float]]:
    """The new revision has few requests for long, while the old one has ever more."""
    for _ in range(40):
        yield rng.randint(0, 1), 200, 0.02
    while True:
        yield 10, 100, 0.02


def bad_minutes(rng: random.Random) -> Iterator[tuple[int, int, float]]:
    """In some minutes half of the requests miss, and the new revision has a larger part of them."""
    while True:
        yield (8, 16, 0.5) if rng.random() < 0.3 else (2, 60, 0.01)


def ended(service: Service, rng: random.Random, worse_by: float = 0.0) -> str:
    """Return the verdict on a canary that is looked at after each minute."""
    minutes: list[Minute] = []
    for new, old, missing in service(rng):
        if new and old:
            missed = (
                sum(rng.random() < part for _ in range(n)) for part, n in ((missing + worse_by, new), (missing, old))
            )
            minutes.append(minute((new, next(missed)), (old, next(missed))))
        found = verdict(Comparison(tuple(minutes)), CanaryRules(50, 1e9), 0.0)
        if found != CONTINUE:
            return found
    raise AssertionError("a service never ends")


@pytest.mark.parametrize(
    "service",
    [*map(steady, (0.5, 0.9, 0.99, 0.999)), few_new_many_old, bad_minutes],
    ids=["50", "90", "99", "99.9", "few new", "bad minutes"],
)
def test_a_revision_that_is_as_good_goes_back_in_at_most_5_percent_of_all_canaries(service: Service) -> None:
    rng, canaries = random.Random(7), 600
    back = sum(ended(service, rng) == REVERT for _ in range(canaries))
    # 5 %, and three standard deviations of that.
    assert back <= 0.05 * canaries + 3 * math.sqrt(0.05 * 0.95 * canaries)


@pytest.mark.parametrize("service", [steady(0.99), few_new_many_old], ids=["99", "few new"])
def test_a_revision_that_is_clearly_worse_goes_back_in_nearly_all(service: Service) -> None:
    rng, canaries = random.Random(7), 200
    assert sum(ended(service, rng, worse_by=0.2) == REVERT for _ in range(canaries)) >= 0.97 * canaries


def test_the_words() -> None:
    assert words_of(Comparison(), RULES, 10) == "canary: 10 % of the requests, 0 of 100"
    counted = seen((57, 1), (2000, 1))
    assert words_of(counted, RULES, 10) == (
        "canary: 10 % of the requests, 57 of 100, attainment 98.2 % new, 99.9 % old"
    )
