"""Tests of the sizes of both pools together: both have workers, or neither has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.controller.replicas import Declared, Replicas, ZeroOrder, decide_both
from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION, at_zero, leaves_zero

FIXED = {"prefill": Declared(2), "decode": Declared(3)}
SCALED = {"prefill": Declared(bounds=(1, 4)), "decode": Declared(bounds=(2, 8))}
SIZES = {"prefill": 1, "decode": 2}
STAY, SLEEP, WAKE = (
    ZeroOrder(True, sizes=SIZES),
    ZeroOrder(True, sleep=True, sizes=SIZES),
    ZeroOrder(True, wake=True, sizes=SIZES),
)
NOBODY: Mapping[str, int | None] = {"prefill": None, "decode": None}


def pool(replicas: int, mark: str | None) -> dict[str, Any]:
    return {"metadata": {"annotations": {DECLARED_ANNOTATION: mark} if mark else {}}, "spec": {"replicas": replicas}}


def pools(prefill: tuple[int, str | None], decode: tuple[int, str | None]) -> dict[str, Any]:
    return {"prefill": pool(*prefill), "decode": pool(*decode)}


def written(found: Mapping[str, Replicas]) -> dict[str, Any]:
    """Return the pools as they are once the decision is written."""
    return {role: pool(r.count, r.declared) for role, r in found.items()}


def sizes(found: Mapping[str, Replicas]) -> tuple[int, int]:
    return found["prefill"].size, found["decode"].size


ASLEEP = pools((0, "zero:2:2"), (0, "zero:3:5"))


@pytest.mark.parametrize(
    ("declared", "before", "order", "expected"),
    [
        pytest.param(FIXED, pools((2, "2"), (5, "3")), STAY, (2, 5), id="nothing is asked"),
        pytest.param(FIXED, pools((2, "2"), (5, "3")), SLEEP, (0, 0), id="both go at once"),
        pytest.param(FIXED, ASLEEP, STAY, (0, 0), id="and stay"),
        pytest.param(FIXED, ASLEEP, WAKE, (2, 5), id="both wake as they were"),
        pytest.param(FIXED, ASLEEP, ZeroOrder(), (2, 5), id="the field is taken away"),
        pytest.param(FIXED, pools((2, "2"), (5, "3")), ZeroOrder(sleep=True), (2, 5), id="it is not declared"),
        pytest.param(FIXED, pools((0, "zero:2:2"), (7, "zero:3:5")), STAY, (2, 7), id="one is scaled: both wake"),
        pytest.param(FIXED, pools((0, "zero:2:2"), (7, "zero:3:5")), SLEEP, (2, 7), id="however idle it was"),
        pytest.param(FIXED, pools((0, "zero:2:2"), (5, "3")), STAY, (2, 5), id="killed in between: both serve"),
        pytest.param(FIXED, pools((0, "zero:2:2"), (5, "3")), SLEEP, (0, 0), id="interrupted: both go on"),
        pytest.param(FIXED, pools((0, "zero:1:4"), (0, "zero:3:5")), WAKE, (2, 5), id="edited meanwhile"),
        pytest.param(FIXED, pools((0, "2"), (5, "3")), STAY, (1, 5), id="one is scaled to zero: it keeps one"),
        pytest.param(FIXED, pools((2, "2"), (0, "3")), ZeroOrder(), (2, 1), id="whether or not zero is allowed"),
        pytest.param(FIXED, pools((0, "2"), (0, "3")), ZeroOrder(), (0, 0), id="both are scaled to zero"),
        pytest.param(FIXED, pools((0, "2"), (0, "3")), STAY, (0, 0), id="they rest if zero is allowed"),
        pytest.param(FIXED, pools((0, "2"), (0, "3")), WAKE, (2, 3), id="and wake as declared"),
        pytest.param(FIXED, pools((0, "2"), (3, "3")), ZeroOrder(), (1, 3), id="one is scaled up from zero"),
        pytest.param(SCALED, pools((3, None), (7, None)), SLEEP, (0, 0), id="autoscaled pools go"),
        pytest.param(SCALED, pools((0, "zero:-:1"), (0, "zero:-:2")), WAKE, (1, 2), id="and come back small"),
        pytest.param(SCALED, pools((3, None), (7, None)), STAY, (3, 7), id="autoscaled pools stay"),
        pytest.param(
            {**SCALED, "decode": Declared(3)}, pools((0, "zero:-:1"), (0, "zero:3:6")), WAKE, (1, 6), id="one is scaled"
        ),
        pytest.param(
            {"prefill": Declared(0), "decode": Declared(0)},
            {"prefill": None, "decode": None},
            STAY,
            (0, 0),
            id="declared to begin at zero",
        ),
        pytest.param(
            {"prefill": Declared(0), "decode": Declared(0)},
            pools((0, "zero:0:1"), (0, "zero:0:1")),
            WAKE,
            (1, 1),
            id="with one each if none was declared",
        ),
    ],
)
def test_sizes(declared: dict[str, Declared], before: dict[str, Any], order: ZeroOrder, expected: Any) -> None:
    assert sizes(decide_both(declared, before, NOBODY, order)) == expected


def test_the_number_of_a_pool_that_was_scaled_to_zero_alone_stays_as_it_was_written() -> None:
    found = decide_both(FIXED, pools((0, "2"), (5, "3")), NOBODY)
    assert (found["prefill"].count, found["prefill"].kept) == (0, 1)
    # So that nothing is left to do once the other one follows.
    assert sizes(decide_both(FIXED, pools((0, "2"), (0, "3")), NOBODY)) == (0, 0)


def test_a_decision_of_the_autoscaler_does_not_wake_anybody() -> None:
    before = pools((0, "zero:-:1"), (0, "zero:-:2"))
    assert sizes(decide_both(SCALED, before, {"prefill": 3, "decode": 3}, STAY)) == (0, 0)
    assert sizes(decide_both(SCALED, before, {"prefill": 3, "decode": 3}, WAKE)) == (1, 2)


def test_a_suspension_wins_and_remembers_the_sizes_from_before() -> None:
    found = decide_both(FIXED, ASLEEP, NOBODY, WAKE, suspended=True)
    assert (found["prefill"].declared, found["decode"].declared) == ("suspended:2:2", "suspended:3:5")
    assert sizes(decide_both(FIXED, written(found), NOBODY, STAY)) == (2, 5)
    found = decide_both(SCALED, pools((0, "zero:-:1"), (0, "zero:-:2")), NOBODY, STAY, suspended=True)
    assert sizes(decide_both(SCALED, written(found), NOBODY, STAY)) == (1, 2)


COUNTS = st.integers(0, 9)
DECLARED_SIZES = st.one_of(
    COUNTS.map(Declared), st.tuples(st.integers(1, 3), st.integers(3, 9)).map(lambda b: Declared(bounds=b))
)
MARKS = st.one_of(st.none(), COUNTS.map(str), st.tuples(st.sampled_from(["-", "1", "4"]), COUNTS).map(
    lambda m: f"zero:{m[0]}:{m[1]}"), st.just("suspended:2:5"))  # fmt: skip
POOLS = st.one_of(st.none(), st.builds(pool, COUNTS, MARKS))
BOTH_DECLARED = st.fixed_dictionaries({"prefill": DECLARED_SIZES, "decode": DECLARED_SIZES}).filter(
    # The API refuses a resource that declares 0 for one pool alone.
    lambda d: (d["prefill"] == Declared(0)) == (d["decode"] == Declared(0))
)
BOTH_POOLS = st.fixed_dictionaries({"prefill": POOLS, "decode": POOLS})
ORDERS = st.builds(
    ZeroOrder, st.booleans(), st.booleans(), st.booleans(), st.just(SIZES) | st.just({"prefill": 3, "decode": 3})
)
WANTED = st.fixed_dictionaries({"prefill": st.none() | COUNTS, "decode": st.none() | COUNTS})


@given(BOTH_DECLARED, BOTH_POOLS, WANTED, ORDERS, st.booleans())
def test_both_pools_have_workers_or_neither_and_the_decision_stands(
    declared: dict[str, Declared], before: dict[str, Any], wanted: Any, order: ZeroOrder, suspended: bool
) -> None:
    found = decide_both(declared, before, wanted, order, suspended=suspended)
    assert len({r.size > 0 for r in found.values()}) == 1
    # Once it is written, nothing is left to do, whatever was ordered.
    after = ZeroOrder(order.allowed, sizes=order.sizes)
    again = decide_both(declared, written(found), NOBODY, after, suspended=suspended)
    assert {role: (r.count, r.declared, r.kept) for role, r in again.items()} == {
        role: (r.count, r.declared, r.kept) for role, r in found.items()
    }


@given(BOTH_DECLARED, BOTH_POOLS, ORDERS, st.sampled_from(["prefill", "decode"]))
def test_an_operator_that_dies_between_the_two_pools_leaves_nothing_that_does_not_end(
    declared: dict[str, Declared], before: dict[str, Any], order: ZeroOrder, first: str
) -> None:
    half = before | {first: written(decide_both(declared, before, NOBODY, order))[first]}
    stay = ZeroOrder(order.allowed, sizes=order.sizes)
    found = decide_both(declared, half, NOBODY, stay)
    assert len({r.size > 0 for r in found.values()}) == 1
    assert sizes(decide_both(declared, written(found), NOBODY, stay)) == sizes(found)


@given(BOTH_DECLARED, BOTH_POOLS, st.booleans())
def test_nobody_is_taken_to_zero_and_none_is_kept_there_unless_it_is_declared(
    declared: dict[str, Declared], before: dict[str, Any], sleep: bool
) -> None:
    found = decide_both(declared, before, NOBODY, ZeroOrder(False, sleep=sleep))
    assert not at_zero(written(found).values())
    allowed = decide_both(declared, before, NOBODY, ZeroOrder(True, sleep=True))
    assert at_zero(written(allowed).values()) or leaves_zero(before.values())
