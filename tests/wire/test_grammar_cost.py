"""Tests of formats that are refused because of what they would cost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.grammar_cost import MAX_DEPTH, MAX_ELEMENTS, MAX_SCHEMA_NODES, problem


def nested(n: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("regex", "fits"),
    [
        ("", True),
        ("a{100000}", True),
        ("a{100001}", False),
        ("a{0,100001}", False),
        ("a{100001,}", False),
        ("a{,100001}", False),
        ("(ab){50000}", True),
        ("(ab){50001}", False),
        ("(a{1,400}b){1,300}", False),
        ("(((x{0,50}y){0,50}z){0,50}w){0,50}", False),
        (r"(\w{1,200}\s){1,200}", True),
        (r"[a-z]{400}[0-9]{3}|x{2000}", True),
        (r"[^]{9}{999}]{100000}", True),
        (r"[\]{9}]{100001}", False),
        (r"\({100000}", True),
        (r"(\)a){50001}", False),
        ("x{y}{z", True),
        (")))a{100001}", False),
        ("(" * MAX_DEPTH, False),
        ("(a" * 50 + ")" * 50, True),
        ("\\", True),
        ("[", True),
    ],
)
def test_a_regular_expression_is_measured_with_its_repetitions(regex: str, fits: bool) -> None:
    assert (problem("regex", regex) == "") is fits


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "maxLength": 10**6}}}, ""),
        (nested(40), ""),
        (nested(MAX_DEPTH), "nested"),
        ({"enum": list(range(MAX_SCHEMA_NODES))}, "values"),
        ({"pattern": "(a{400}){400}"}, "elements"),
        ({"patternProperties": {"(a{400}){400}": {}}}, "elements"),
        ({"anyOf": [{"pattern": "a{60000}"}, {"pattern": "b{60000}"}]}, "elements"),
        ({"pattern": "(" * 200}, "nested"),
        ({"pattern": 5, "patternProperties": [1]}, ""),
    ],
)
def test_a_schema_is_measured_by_its_values_and_patterns(schema: Any, says: str) -> None:
    found = problem("json_schema", json.dumps(schema))
    assert says in found
    assert bool(found) is bool(says)


@pytest.mark.parametrize(("kind", "value"), [("choice", '["a"]'), ("grammar", "start: x"), ("json_schema", "{")])
def test_what_is_bounded_elsewhere_has_no_problem_here(kind: str, value: str) -> None:
    assert problem(kind, value) == ""


def test_a_schema_that_may_not_even_be_readable_is_nested_too_deeply() -> None:
    """The parser of Python 3.14 can read it, and earlier ones cannot."""
    assert "nested" in problem("json_schema", "[" * 60_000 + "]" * 60_000)


@given(st.text(st.sampled_from(r"ab(){}[]|*+?^\,0123456789"), max_size=60))
def test_every_text_has_a_cost(regex: str) -> None:
    found = problem("regex", regex)
    assert found == "" or str(MAX_ELEMENTS) in found


@given(st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_the_cost_of_nested_counts_is_their_product(counts: list[int]) -> None:
    regex, elements = "a", 1
    for n in counts:
        regex, elements = f"(?:{regex}){{{n}}}", elements * n
    assert re.fullmatch(regex, "a" * elements) or elements > 10_000
    assert (problem("regex", regex) == "") is (elements <= MAX_ELEMENTS)
