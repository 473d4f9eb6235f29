"""Fields that somebody wrote and that an older CRD drops."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.kube.lost_fields import lost_fields

SPEC = {
    "engine": {"type": "vllm", "env": [{"name": "A", "value": "b"}]},
    "prefill": {"replicas": 1, "podTemplate": {"spec": {"nodeSelector": None}}},
}


@pytest.mark.parametrize(
    ("fields", "lost"),
    [
        pytest.param({}, [], id="nothing is recorded"),
        pytest.param({"f:engine": {".": {}, "f:type": {}}, "f:prefill": {"f:replicas": {}}}, [], id="all is there"),
        pytest.param({"f:engine": {"f:args": {}}}, ["spec.engine.args"], id="a field"),
        pytest.param({"f:model": {"f:adapters": {}}}, ["spec.model"], id="a part"),
        pytest.param({"f:engine": {"f:env": {'k:{"name":"A"}': {".": {}, "f:value": {}}}}}, [], id="an item"),
        pytest.param(
            {"f:engine": {"f:env": {'k:{"name":"A"}': {"f:from": {}}}}}, ["spec.engine.env[A].from"], id="of an item"
        ),
        pytest.param({"f:engine": {"f:env": {'k:{"name":"B"}': {"f:value": {}}}}}, [], id="another item"),
        pytest.param({"f:engine": {"f:env": {'v:"x"': {}}}}, [], id="a value of a set"),
        pytest.param({"f:prefill": {"f:podTemplate": {"f:spec": {"f:nodeSelector": {}}}}}, [], id="a null"),
        pytest.param(
            {"f:prefill": {"f:podTemplate": {"f:spec": {"f:nodeSelector": {"f:x": {}}}}}}, [], id="below a null"
        ),
    ],
)
def test_fields_that_are_recorded_and_missing(fields: dict[str, Any], lost: list[str]) -> None:
    entries = [
        {"manager": "kubectl", "fieldsV1": {"f:spec": fields}},
        {"manager": "disagg-operator", "subresource": "status", "fieldsV1": {"f:spec": {"f:never": {}}}},
        {"manager": "old"},
    ]
    assert lost_fields({"metadata": {"managedFields": entries}, "spec": SPEC}) == lost


def test_an_object_without_records_has_lost_nothing() -> None:
    assert lost_fields({"metadata": {}, "spec": SPEC}) == []
    assert lost_fields({"metadata": {"managedFields": [{"fieldsV1": {"f:spec": "odd"}}]}}) == []
