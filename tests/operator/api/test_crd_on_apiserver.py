"""The generated CRDs on a real API server: the table of bad resources, defaults, /scale, pruning and the printed columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.operator.api.resources import BAD, BAD_TEMPLATES, UNKNOWN, Obj

from disagg_operator.api import parse

pytestmark = pytest.mark.apiserver

REPO = Path(__file__).resolve().parents[3]
DEPLOYMENTS = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggdeployments"
POOLS = "/apis/disagg.dev/v1alpha1/namespaces/default/disaggpools"
STRICT = {"fieldValidation": "Strict", "dryRun": "All"}


def _create(crd_client: httpx.Client, resource: Obj) -> httpx.Response:
    metadata = {k: v for k, v in resource["metadata"].items() if k != "uid"}
    return crd_client.post(DEPLOYMENTS, params=STRICT, json={**resource, "metadata": metadata})


@pytest.mark.parametrize("case", BAD)
def test_a_bad_resource_is_refused_by_name(crd_client: httpx.Client, case: str) -> None:
    resource, words, _ = BAD[case]
    answer = _create(crd_client, resource)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["message"]


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_field_is_refused_by_name(crd_client: httpx.Client, case: str) -> None:
    resource, path = UNKNOWN[case]
    answer = _create(crd_client, resource)
    assert answer.status_code == 400, answer.text
    assert f'unknown field "{path}"' in answer.json()["message"]


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_what_only_python_sees_gets_past_the_api_server(crd_client: httpx.Client, case: str) -> None:
    """The reason why `parse` checks it: if this fails, the schema can carry the check instead."""
    assert _create(crd_client, BAD_TEMPLATES[case][0]).status_code == 201


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_accepted_and_its_defaults_are_those_of_the_models(crd_client: httpx.Client, path: Path) -> None:
    for resource in yaml.safe_load_all(path.read_text()):
        if resource["kind"] != "DisaggDeployment":
            continue
        answer = _create(crd_client, resource)
        assert answer.status_code == 201, answer.text
        assert parse(answer.json()).spec == parse(resource).spec


def _pool() -> Obj:
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggPool",
        "metadata": {"name": "chat-decode"},
        "spec": {"deployment": "chat", "role": "decode", "replicas": 1},
    }


def test_kubectl_scale_and_an_hpa_can_read_and_write_a_pool(crd_client: httpx.Client) -> None:
    assert crd_client.post(POOLS, json=_pool()).status_code == 201
    merge = {"Content-Type": "application/merge-patch+json"}
    status: dict[str, Any] = {"status": {"replicas": 2, "readyReplicas": 1, "selector": "a=b", "observedGeneration": 1}}
    patched = crd_client.patch(f"{POOLS}/chat-decode/status", params={"fieldValidation": "Strict"}, json=status, headers=merge)
    assert patched.status_code == 200, patched.text
    scaled = crd_client.patch(f"{POOLS}/chat-decode/scale", json={"spec": {"replicas": 3}}, headers=merge)
    assert scaled.status_code == 200, scaled.text
    assert (scaled.json()["spec"], scaled.json()["status"]) == ({"replicas": 3}, {"replicas": 2, "selector": "a=b"})
    assert crd_client.get(f"{POOLS}/chat-decode").json()["spec"]["replicas"] == 3


def test_kubectl_get_shows_both_pools(crd_client: httpx.Client) -> None:
    accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = crd_client.get(DEPLOYMENTS, headers=accept).json()
    shown = [c["name"] for c in table["columnDefinitions"] if c["priority"] == 0]
    assert shown == ["Name", "Ready", "Reason", "Model", "Prefill", "Decode", "URL", "Age"]
