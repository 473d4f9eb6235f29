"""The check of a parsed resource reaches every rule, and each refusal names its place."""

from __future__ import annotations

import pytest
from tests.operator.api.resources import BAD, good, watched
from tests.operator.api.test_rules import RULES

from disagg_operator.api import DisaggDeployment, parse_file
from disagg_operator.api.admission import refusals, unknown_fields
from disagg_operator.api.base import Model
from disagg_operator.api.expressions import at_most, field
from disagg_operator.api.rules import Rule


class Leaf(Model):
    """A part with a rule."""

    rules = (Rule("too many", at_most(field("howMany"), 1), "howMany"),)
    how_many: int = 0


class Tree(Model):
    """A whole with parts that have no key."""

    leaves: list[Leaf] = []
    names: list[str] = []


_ENV = [{"name": "A"}, {"name": "HF_TOKEN"}]


def _refusals(resource: dict[str, object]) -> list[str]:
    return list(refusals(DisaggDeployment.model_validate(resource)))


def _of_the_table() -> set[str]:
    """Return the messages that the table of invalid resources causes."""
    found = set()
    for resource, _, _ in BAD.values():
        try:
            found |= {refusal.partition(": ")[2] for refusal in _refusals(resource)}
        except ValueError:  # refused by its schema
            continue
    return found


def test_a_good_resource_has_none() -> None:
    assert _refusals(good()) == []


@pytest.mark.parametrize("message", [rule.message for _, rule in RULES])
def test_the_table_of_bad_resources_has_a_row_for_every_rule(message: str) -> None:
    assert message in _of_the_table()


def test_an_item_of_a_list_is_named_by_its_key() -> None:
    (refusal,) = _refusals(good(engine={"env": _ENV}))
    assert refusal.startswith("spec.engine.env[HF_TOKEN].name: ")


def test_a_rule_that_blames_no_field_names_the_whole() -> None:
    (refusal,) = _refusals(watched(tlsConfig={"ca": {}}))
    assert refusal == "spec.observability.prometheus.tlsConfig.ca: set either secret or configMap"


def test_parts_come_before_the_whole_and_all_are_found() -> None:
    scale = {"minReplicas": 3, "maxReplicas": 2}
    resource = good("1", engine={"env": _ENV}, prefill={"replicas": 0, "autoscaling": scale})
    paths = [refusal.partition(": ")[0] for refusal in _refusals(resource)]
    assert paths == [
        "spec.engine.env[HF_TOKEN].name",
        "spec.prefill.autoscaling.minReplicas",
        "spec.prefill.autoscaling",
        "metadata.name",
        "spec",
    ]


def test_an_item_without_a_key_is_named_by_its_index() -> None:
    tree = Tree.model_validate({"leaves": [{"howMany": 1}, {"howMany": 2}], "names": ["a"]})
    assert list(refusals(tree)) == ["leaves[1].howMany: too many"]


def test_an_unknown_field_is_found_in_lists_and_is_free_where_others_may_write() -> None:
    raw = {"leaves": [{"howMany": 1}, {"many": 2}], "names": ["a"], "more": 1}
    assert list(unknown_fields(Tree.model_validate(raw), raw)) == ["leaves[1].many", "more"]
    metadata = {"name": "chat", "labels": {"a": "b"}}
    assert parse_file({**good(), "metadata": metadata}).metadata.name == "chat"
