"""Tests of reading JSON that is nested too deeply for Python's parser."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.kube.json_text import MAX_DEPTH, depth_of, flattened, loads, shallow

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=30,
).filter(lambda value: isinstance(value, dict | list))


def nested(depth: int, mark: str = "disagg.dev/v1alpha1") -> str:
    return f'{{"apiVersion": "{mark}", "a": "}}]", "deep": {"[" * depth}{"]" * depth}, "after": 1}}'


def test_a_part_that_is_too_deep_becomes_null_and_the_rest_stays() -> None:
    for depth in (2 * MAX_DEPTH, 10_000):
        found = loads(nested(depth))
        assert depth_of(found, 10**6) == MAX_DEPTH
        assert (found["a"], found["after"]) == ("}]", 1)


def test_objects_of_other_kinds_are_read_as_they_are_where_python_can() -> None:
    assert loads(nested(200, "v1")) == json.loads(nested(200, "v1"))
    assert depth_of(loads(nested(10_000, "v1")), 10**6) == MAX_DEPTH


@given(VALUES, st.integers(1, 5))
def test_both_ways_of_cutting_give_the_same(value: Any, depth: int) -> None:
    text = json.dumps(value)
    cut = json.loads(flattened(text, depth))
    assert cut == shallow(json.loads(text), depth)
    assert depth_of(cut, 100) == min(depth, depth_of(value, 100))
    assert (depth_of(value, 100) > depth) or cut == value


def test_counting_stops_at_the_limit() -> None:
    assert depth_of([[[[]]]], 2) == 2
    assert depth_of(1, 2) == 0
