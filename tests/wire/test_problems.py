"""Tests of the problems that workers report about themselves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.problems import MAX_PROBLEM_CHARS, WorkerProblem, parse_problem, parse_termination_message

FOUND = WorkerProblem("UnknownEngineVersion", "vllm 9.9")


def test_a_problem_comes_back_as_it_was_sent() -> None:
    assert parse_problem(FOUND.as_json()) == FOUND
    assert parse_termination_message(FOUND.termination_message()) == FOUND
    assert parse_termination_message(f"starting\n{FOUND.termination_message()}\n") == FOUND


@pytest.mark.parametrize(
    "value",
    [None, "x", {}, {"reason": 1}, {"reason": "two words"}, {"reason": "a"}, {"reason": "A", "message": 1}],
)
def test_what_is_no_problem_is_none(value: Any) -> None:
    assert parse_problem(value) is None


@pytest.mark.parametrize("text", ["", "boom", "{", "[1]", '{"problem": 1}', '{"other": {"reason": "A"}}', "{" * 99])
def test_another_last_word_is_none(text: str) -> None:
    assert parse_termination_message(text) is None


def test_a_message_is_bounded() -> None:
    long = WorkerProblem("A", "x" * 9999)
    assert len(long.as_json()["message"]) == MAX_PROBLEM_CHARS
    found = parse_problem({"reason": "A", "message": "x" * 9999})
    assert found is not None
    assert len(found.message) == MAX_PROBLEM_CHARS


@given(st.text())
def test_no_last_word_breaks_the_reader(text: str) -> None:
    parse_termination_message(text)
