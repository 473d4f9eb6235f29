"""Tests of formats, probabilities, errors and names as engines write them."""

from __future__ import annotations

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_adapter.engines.formats import choice_regex, fault_of, logprob_of, name_of
from disagg_wire import codes


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_the_expression_matches_the_choices_and_nothing_else(choices: list[str]) -> None:
    expression = re.compile(choice_regex(json.dumps(choices)))
    for choice in choices:
        assert expression.fullmatch(choice)
        assert not expression.fullmatch(choice + "x") or choice + "x" in choices


def test_characters_without_a_meaning_are_not_escaped() -> None:
    assert choice_regex('["a-b c", "1.5", "x\\ny"]') == "(a-b c|1\\.5|x\\ny)"


@pytest.mark.parametrize("value", [-math.inf, math.nan, -1e9])
def test_a_probability_of_zero_can_be_written_as_json(value: float) -> None:
    assert logprob_of(value) == -9999.0
    assert logprob_of(-0.5) == -0.5


def test_names_have_one_length() -> None:
    names = {name_of(text) for text in ("", "a", "a" * 200)}
    assert len(names) == 3
    assert {len(name) for name in names} == {32}


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, codes.INVALID_REQUEST, False),
        (413, codes.INVALID_REQUEST, False),
        (429, codes.NO_CAPACITY, True),
        (503, codes.NO_CAPACITY, True),
        (500, codes.TRANSFER_FAILED, True),
        (None, codes.TRANSFER_FAILED, True),
    ],
)
def test_the_status_of_an_answer_says_which_error_it_is(status: int | None, code: str, retryable: bool) -> None:
    fault = fault_of(status, "text", codes.TRANSFER_FAILED)
    assert (fault.code, fault.retryable, str(fault)) == (code, retryable, "text")
