"""A resource is parsed whole, from the cluster or from a file, and chooses its policy."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api.v1alpha1 import InvalidResource, parse, parse_file


def test_a_file_and_the_cluster_say_the_same() -> None:
    resource = good(decode={"replicas": 3})
    resource["status"] = {"conditions": [], "url": "http://u"}
    assert parse_file(resource) == parse(resource)
    assert parse(resource).spec.pool("decode").replicas == 3
    assert parse(resource).spec.pool("prefill") == parse(resource).spec.prefill


METRICS = {"metrics": [{"target": {"averageValue": "2"}}]}


def scaled(**more: Any) -> dict[str, Any]:
    return {"autoscaling": {"maxReplicas": 4, **more}}


@pytest.mark.parametrize(
    ("spec", "predictive"),
    [
        ({}, True),
        ({"prefill": scaled(), "decode": scaled()}, True),
        ({"prefill": scaled(**METRICS), "decode": scaled()}, False),
        ({"prefill": scaled(), "decode": scaled(**METRICS)}, False),
        ({"prefill": scaled(), "scaling": {"policy": "queue"}}, False),
        ({"prefill": scaled(), "scaling": {"policy": "predictive"}}, True),
    ],
)
def test_the_policy_is_the_one_that_is_named_and_else_metrics_choose(spec: dict[str, Any], predictive: bool) -> None:
    assert parse(good(**spec)).spec.predictive == predictive


def test_a_wrong_type_is_named_before_a_broken_rule() -> None:
    with pytest.raises(InvalidResource, match=r"^spec\.prefill\.replicas: "):
        parse(good(model={"uri": "nowhere"}, prefill={"replicas": "two"}))
    with pytest.raises(InvalidResource, match=r"^spec\.model\.uri: "):
        parse(good(model={"uri": "nowhere"}))
