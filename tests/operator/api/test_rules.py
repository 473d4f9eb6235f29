"""The rules of all models refer to fields that exist, and the CRD holds their messages."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from tests.operator.api.resources import good

from disagg_operator.api import DisaggDeployment, DisaggPool, parse
from disagg_operator.api.base import Model
from disagg_operator.api.expressions import attributes, equal, field
from disagg_operator.api.rules import Rule


def _classes(hint: object) -> Iterator[type[Model]]:
    """Yield the models in a type."""
    if isinstance(hint, type) and issubclass(hint, Model):
        yield hint
    for part in typing.get_args(hint):
        yield from _classes(part)


def _models(top: type[Model]) -> Iterator[type[Model]]:
    yield top
    for info in top.model_fields.values():
        for part in _classes(info.annotation):
            yield from _models(part)


MODELS = sorted({m for top in (DisaggDeployment, DisaggPool) for m in _models(top)}, key=lambda m: m.__name__)
RULES = [(model, rule) for model in MODELS for rule in model.rules]
_PATH = re.compile(r"self\.([A-Za-z0-9.]+)")
_METHODS = {"matches", "startsWith", "lowerAscii", "all"}


def _holder(model: type[Model], path: list[str]) -> tuple[type[Model], str]:
    """Return the model that holds the field at the end of a path, and the name of its attribute."""
    for name in path[:-1]:
        (model,) = _classes(model.model_fields[attributes(model)[name]].annotation)
    return model, attributes(model)[path[-1]]


@pytest.mark.parametrize(("model", "rule"), RULES, ids=[f"{m.__name__}: {r.message}" for m, r in RULES])
def test_a_rule_speaks_of_fields_that_exist(model: type[Model], rule: Rule) -> None:
    paths = [path.split(".") for path in _PATH.findall(rule.condition.cel)]
    assert paths
    for path in paths:
        _holder(model, path[:-1] if path[-1] in _METHODS else path)
    if rule.field:
        _holder(model, rule.field.split("."))


@pytest.mark.parametrize(("model", "rule"), RULES, ids=[f"{m.__name__}: {r.message}" for m, r in RULES])
def test_no_rule_asks_whether_a_list_is_set_without_asking_whether_it_is_empty(model: type[Model], rule: Rule) -> None:
    """A list that is left out is absent at the API server, but empty once parsed."""
    for path in re.findall(r"has\(self\.([A-Za-z0-9.]+)\)", rule.condition.cel):
        holder, attribute = _holder(model, path.split("."))
        if holder.model_fields[attribute].get_default() in ([], {}, ""):
            assert f"has(self.{path}) && size(self.{path}) > 0" in rule.condition.cel


def test_a_rule_says_which_field_is_to_blame() -> None:
    ever = equal(field("a"), 1)
    assert Rule("m", ever).as_cel() == {"rule": "self.a == 1", "message": "m"}
    assert Rule("m", ever, "a.b").as_cel() == {"rule": "self.a == 1", "message": "m", "fieldPath": ".a.b"}
    assert "fieldPath" not in Rule("m", ever, "metadata.name").as_cel()  # not our schema: the API server rejects it


def test_what_cel_can_not_say_is_refused_by_the_parser_alone() -> None:
    class Pair(BaseModel):
        a: int
        b: int

    rule = Rule("m", equal(field("a"), 1), further=lambda pair: pair.b == 2)
    assert rule.holds(Pair(a=1, b=2))
    assert not rule.holds(Pair(a=1, b=3))
    assert not rule.holds(Pair(a=0, b=2))


@pytest.mark.parametrize(
    ("decode", "message"),
    [({"resources": {"limits": {"cpu": "2"}}}, "roleFlip"), ({"kvCacheSize": "1Gi"}, "roleFlip"), ({}, None)],
)
def test_pools_that_differ_in_a_quantity_do_not_flip(decode: dict[str, object], message: str | None) -> None:
    scale = {"autoscaling": {"maxReplicas": 2}}
    resource = good(prefill=scale, decode={**scale, **decode}, scaling={"roleFlip": True})
    if message is None:
        assert parse(resource).spec.scaling.role_flip
        return
    with pytest.raises(ValueError, match=message):
        parse(resource)
    assert not parse(good(prefill=scale, decode={**scale, **decode})).spec.scaling.role_flip
