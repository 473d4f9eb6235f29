"""The types of fields keep their bounds, and a model's rules stand in its schema."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from disagg_operator.api.base import ByteQuantity, DnsLabel, Model, PositiveNumber, Quantity, SecretRef, list_map
from disagg_operator.api.expressions import present
from disagg_operator.api.rules import Rule


class Plain(Model):
    """A model without rules."""

    some_size: ByteQuantity | None = Field(None)
    amount: Quantity | None = Field(None)
    number: PositiveNumber | None = Field(None)
    name: DnsLabel | None = Field(None)


class Ruled(Plain):
    """A model with a rule."""

    rules = (Rule(message="someSize is needed", condition=present("someSize"), field="someSize"),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("someSize", "1Gi"), ("someSize", 1), ("someSize", "0.5k"), ("amount", "100m"), ("amount", 4),
        ("number", "0.5"), ("number", 7),
        ("number", "999999.999"), ("name", "a-1"),
    ],
)  # fmt: skip
def test_a_value_within_the_bounds_is_taken_as_it_is(field: str, value: Any) -> None:
    assert Plain.model_validate({field: value}).model_dump(by_alias=True)[field] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("someSize", "1Zi"), ("someSize", 0), ("someSize", -1), ("someSize", (1 << 50) + 1), ("someSize", "1Gi\n"),
        ("someSize", True), ("amount", "1e3"), ("amount", 1.5), ("amount", True), ("number", False),
        ("number", "0"), ("number", "0.0"), ("number", 1_000_000),
        ("number", "1.2345"),
        ("name", ""), ("name", "A"), ("name", "-a"), ("name", "a" * 64), ("name", "a\n"),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Plain.model_validate({field: value})


def test_rules_are_in_the_schema_and_only_where_there_are_some() -> None:
    assert Ruled.model_json_schema()["x-kubernetes-validations"] == [
        {"rule": "has(self.someSize)", "message": "someSize is needed", "fieldPath": ".someSize"}
    ]
    assert "x-kubernetes-validations" not in Plain.model_json_schema()


def test_a_broken_rule_is_found_in_a_parsed_model() -> None:
    assert list(Ruled().broken()) == [("someSize", "someSize is needed")]
    assert list(Ruled(someSize="1Gi").broken()) == list(Plain().broken()) == []


def test_unknown_fields_are_left_out_and_names_are_those_of_the_api() -> None:
    found = SecretRef.model_validate({"name": "a", "more": 1})
    assert found.model_dump(by_alias=True) == {"name": "a", "key": "token"}


def test_a_list_with_a_key_is_merged_by_it() -> None:
    assert list_map("name") == {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
