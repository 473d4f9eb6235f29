"""Fixtures: an API server with our CRDs for the session, and a namespace for each test."""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml
from tests.integration.apiserver import REPO, ApiServer, api_server
from tests.integration.faulty_api import FaultyApi, faulty_api
from tests.integration.operator_process import Cluster, client, eventually

from disagg_operator.vocabulary import Obj

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


async def install_crds(cluster: Cluster) -> None:
    for path in sorted((REPO / "crds").glob("*.yaml")):
        crd: Obj = yaml.safe_load(path.read_text())
        name = crd["metadata"]["name"]
        params = {"fieldManager": "test", "force": "true"}
        await cluster.raw("PATCH", f"{_CRDS}/{name}", crd, "application/apply-patch+yaml", params)

        async def established(name: str = name) -> bool:
            found = await cluster.kube._call("GET", f"{_CRDS}/{name}")
            states = {c["type"]: c["status"] for c in found.get("status", {}).get("conditions", [])}
            return states.get("Established") == "True"

        await eventually(f"{name} is established", established)


@pytest.fixture
async def cluster(server: ApiServer, request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    kube = client(server)
    # Names of tests are longer than names of namespaces may be; the suffix makes them distinct.
    namespace = (
        f"{re.sub(r'[^a-z0-9]+', '-', request.node.name.lower())[:40]}-{zlib.crc32(request.node.name.encode()):08x}"
    )
    found = Cluster(kube, namespace)
    await install_crds(found)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    params = {"fieldManager": "test", "force": "true"}
    await found.raw("PATCH", f"/api/v1/namespaces/{namespace}", body, "application/apply-patch+yaml", params)
    yield found
    await kube.close()


@pytest.fixture
async def api(server: ApiServer, tmp_path: Path) -> AsyncIterator[FaultyApi]:
    async with faulty_api(server, tmp_path) as running:
        yield running
