"""Tests of the fields of a configuration that name tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.errors import ModelError
from disagg_protocol.token_fields import token_ids


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, ()),
        ({"eos": None}, ()),
        ({"eos": 7}, (7,)),
        ({"eos": [7, 0]}, (7, 0)),
        ({"eos": []}, ()),
        ({"eos": 0}, (0,)),
    ],
)
def test_a_field_is_a_token_or_several_or_none(raw: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert token_ids(raw, "eos") == expected


@pytest.mark.parametrize("value", [True, "7", 1.0, -1, [1, None], [[1]], {"id": 1}])
def test_anything_else_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ModelError, match="eos"):
        token_ids({"eos": value}, "eos")


@given(st.lists(st.integers(0, 1 << 31)))
def test_a_list_is_kept_in_its_order(ids: list[int]) -> None:
    assert token_ids({"eos": ids}, "eos") == tuple(ids)
