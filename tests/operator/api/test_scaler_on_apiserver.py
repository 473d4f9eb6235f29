"""DisaggScalers on a real API server: the same rules as the parser's, defaults and columns."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
import yaml
from tests.operator.controller.scalers.scalers import scaler_object

from disagg_operator.api import InvalidResource, parse_scaler
from disagg_operator.vocabulary import Obj

pytestmark = pytest.mark.apiserver

REPO = Path(__file__).resolve().parents[3]
SCALERS = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggscalers"
STRICT = {"fieldValidation": "Strict", "dryRun": "All"}
TARGET: Obj = {"scaleTargetRef": {"name": "p"}, "maxReplicas": 8}
BAD: dict[str, tuple[Obj, str]] = {
    "one target twice": (scaler_object(decode=TARGET), "different targets"),
    "bounds": (scaler_object(prefill=TARGET | {"minReplicas": 9}), "minReplicas must not exceed maxReplicas"),
    "no routers": (scaler_object(metrics={"engine": "builtin"}), "routers must be set with builtin"),
    "routers of others": (
        scaler_object(metrics={"engine": "vllm", "routers": {"matchLabels": {"a": "b"}}}), "routers must be set",
    ),
    "all pods": (scaler_object(prefill=TARGET | {"podSelector": {"matchLabels": {}}}), "matchLabels"),
    "engine": (scaler_object(metrics={"engine": "other"}), "engine"),
    "mode": (scaler_object(mode="Maybe"), "mode"),
    "zero": (scaler_object(prefill=TARGET | {"minReplicas": 0}), "minReplicas"),
    "path": (scaler_object(metrics={"engine": "vllm", "path": "metrics?x"}), "path"),
}  # fmt: skip


def create(crd_client: httpx.Client, resource: Obj) -> httpx.Response:
    metadata = {"name": resource["metadata"]["name"], "namespace": "default"}
    return crd_client.post(SCALERS, params=STRICT, json={**resource, "metadata": metadata})


@pytest.mark.parametrize("case", BAD)
def test_a_bad_resource_is_refused_by_name(crd_client: httpx.Client, case: str) -> None:
    resource, words = BAD[case]
    answer = create(crd_client, resource)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["message"]
    with pytest.raises(InvalidResource):
        parse_scaler(resource)


def test_a_small_resource_is_completed_with_defaults(crd_client: httpx.Client) -> None:
    answer = create(crd_client, scaler_object())
    assert answer.status_code == 201, answer.text
    spec = answer.json()["spec"]
    assert (spec["mode"], spec["metrics"]["path"], spec["prefill"]["minReplicas"]) == ("Shadow", "/metrics", 1)
    assert spec["decode"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
    assert parse_scaler(answer.json()).spec.objectives.ttft_seconds.p99 == 1.0


def test_the_example_is_accepted(crd_client: httpx.Client) -> None:
    for path in sorted((REPO / "examples/scaler").glob("*.yaml")):
        answer = create(crd_client, yaml.safe_load(path.read_text()))
        assert answer.status_code == 201, answer.text
        assert parse_scaler(answer.json()).spec.mode == "Shadow"
