"""Tests of the marks by which a pool without workers is known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION, Mark, at_zero, mark_of, replicas_of


def pool(text: str | None, replicas: Any = 0) -> dict[str, Any]:
    annotations = {} if text is None else {DECLARED_ANNOTATION: text}
    return {"metadata": {"annotations": annotations}, "spec": {"replicas": replicas}}


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (None, Mark(None)),
        ("2", Mark("2")),
        ("zero:2:5", Mark("2", "zero", 5)),
        ("zero:-:1", Mark("-", "zero", 1)),
        ("suspended:2:0", Mark("2", "suspended", 0)),
        ("asleep:2:5", Mark("asleep:2:5")),
        ("zero:2:", Mark("zero:2:")),
        ("zero:2:x", Mark("zero:2:x")),
        ("zero", Mark("zero")),
    ],
)
def test_what_makes_no_sense_is_a_declared_number_that_nobody_declares(text: str | None, mark: Mark) -> None:
    assert mark_of(pool(text)) == mark


@given(st.sampled_from(["-", "0", "17"]), st.sampled_from(["", "zero", "suspended"]), st.integers(0, 1000))
def test_a_mark_is_read_as_it_was_written(declared: str, why: str, saved: int) -> None:
    mark = Mark(declared, why, saved if why else None)
    assert mark_of(pool(mark.text)) == mark


def test_a_pool_that_does_not_exist_says_nothing() -> None:
    assert (mark_of(None), replicas_of(None)) == (Mark(None), None)
    assert replicas_of({"metadata": {}}) is None
    assert replicas_of(pool("2", "3")) is replicas_of(pool("2", -1)) is None


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        ([pool("zero:1:1"), pool("zero:2:2")], True),
        ([pool("zero:1:1"), pool("2")], False),
        ([pool("zero:1:1"), pool("zero:2:2", 2)], False),
        ([pool("suspended:1:1"), pool("zero:2:2")], False),
        ([pool("zero:1:1"), None], False),
        ([], False),
    ],
)
def test_a_deployment_is_at_zero_if_both_pools_are(pools: list[Any], expected: bool) -> None:
    assert at_zero(pools) is expected
