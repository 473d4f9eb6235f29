"""Fixtures for tests marked `apiserver`: a real API server of their own with the generated CRDs."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator

import httpx
import pytest
from tests.integration.apiserver import TOKEN, ApiServer, api_server

from disagg_operator.api import crdgen


@pytest.fixture(scope="session")
def crd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@pytest.fixture(scope="session")
def crd_client(crd_server: ApiServer) -> Iterator[httpx.Client]:
    config = json.loads(crd_server.kubeconfig.read_text())
    context = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=crd_server.url, verify=context, headers=headers, timeout=15, trust_env=False) as opened:
        for crd in crdgen.generate().values():
            answer = opened.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=crd)
            assert answer.status_code == 201, answer.text
            _wait_established(opened, crd["metadata"]["name"])
        yield opened


MULTUS = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
    "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
    "spec": {
        "group": "k8s.cni.cncf.io", "scope": "Namespaced",
        "names": {
            "plural": "network-attachment-definitions", "singular": "network-attachment-definition",
            "kind": "NetworkAttachmentDefinition",
        },
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
            "type": "object",
            "properties": {"spec": {"type": "object", "properties": {"config": {"type": "string"}}}},
        }}}],
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def multus_client(crd_client: httpx.Client) -> httpx.Client:
    """Return a client of an API server that knows the kind of Multus, too."""
    answer = crd_client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=MULTUS)
    assert answer.status_code == 201, answer.text
    _wait_established(crd_client, "network-attachment-definitions.k8s.cni.cncf.io")
    return crd_client


def _wait_established(client: httpx.Client, name: str) -> None:
    """Watch until the API server serves the kind. The watch ends by itself after 30 s."""
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    params = {"watch": "1", "timeoutSeconds": "30", "fieldSelector": f"metadata.name={name}"}
    with client.stream("GET", path, params=params, timeout=40) as stream:
        for line in stream.iter_lines():
            conditions = json.loads(line)["object"].get("status", {}).get("conditions") or []
            if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
                return
    pytest.fail(f"{name} was not established in 30 s")
