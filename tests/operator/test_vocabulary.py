"""Tests that parts of objects are read only where they have the type that they should have."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.vocabulary import map_in, maps_in


@pytest.mark.parametrize(
    ("value", "found"), [({"a": 1}, {"a": 1}), ({}, {}), (None, {}), ([{"a": 1}], {}), ("a", {}), (0, {})]
)
def test_a_map_is_read_and_anything_else_is_none(value: Any, found: dict[str, Any]) -> None:
    assert map_in(value) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [([{"a": 1}, None, "a", [], {}], [{"a": 1}, {}]), ([], []), ({"a": {}}, []), (None, []), ("ab", [])],
)
def test_the_maps_of_a_list_are_read_and_its_other_items_are_left_out(value: Any, found: list[Any]) -> None:
    assert maps_in(value) == found
