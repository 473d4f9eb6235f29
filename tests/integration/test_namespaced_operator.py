"""An operator of some namespaces works without any right outside of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.integration.apiserver import LIMITED_USER, ApiServer
from tests.integration.chart_rights import chart_rights
from tests.integration.operator_process import Cluster, eventually, operator

from disagg_operator.controller.decisions_right import KEY_HEADER, key_in, secret_name
from disagg_operator.kube.resources import SECRET

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


async def test_an_operator_of_two_namespaces_has_no_right_outside_of_them(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    others = [Cluster(cluster.kube, f"{cluster.namespace[:50]}-{name}") for name in ("second", "foreign")]
    for other in others:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other.namespace}}
        await other.raw("POST", "/api/v1/namespaces", body, "application/json")
    second, foreign = others
    watched = f"{cluster.namespace},{second.namespace}"
    values = (f"watchNamespaces={{{watched}}}", "rbac.nodes=false", "rbac.aggregatedRoles=false")
    limited = replace(server, kubeconfig=server.limited_kubeconfig)
    lease = {"DISAGG_LEASE_NAMESPACE": cluster.namespace}
    async with chart_rights(cluster, *values), operator(limited, tmp_path, watched, **lease) as running:
        for one in (foreign, cluster, second):
            await one.apply_resource()
        for one in (cluster, second):

            async def works(one: Cluster = one) -> bool:
                accepted = (await one.condition("Accepted"))["status"] == "True"
                return accepted and await one.replicas("decode") == (2, 2)

            await eventually("its resource is carried out", works)
        # An edit is seen by a watch: the next full list is minutes away.
        await second.apply_resource(decode={"replicas": 3})

        async def grown() -> bool:
            return await second.replicas("decode") == (3, 3)

        await eventually("an edit is seen", grown)
        assert "status" not in await foreign.resource()
        assert await running.stop() == 0
    assert server.forbidden(LIMITED_USER) == []


async def test_decisions_are_for_those_who_may_get_the_key_in_the_operators_namespace(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    watched = Cluster(cluster.kube, f"{cluster.namespace[:50]}-watched")
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": watched.namespace}}
    await watched.raw("POST", "/api/v1/namespaces", body, "application/json")
    values = (f"watchNamespaces={{{watched.namespace}}}", "rbac.nodes=false", "rbac.aggregatedRoles=false")
    limited = replace(server, kubeconfig=server.limited_kubeconfig)
    lease = {"DISAGG_LEASE_NAMESPACE": cluster.namespace}
    async with (
        chart_rights(cluster, *values),
        operator(limited, tmp_path, watched.namespace, **lease) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}", trust_env=False) as http,
    ):

        async def key() -> str | None:
            assert (await http.get(f"/decisions/{watched.namespace}/chat")).status_code == 401
            return key_in(await cluster.kube.get(SECRET, cluster.namespace, secret_name("disagg-operator")))

        async def made() -> bool:
            return await key() is not None

        await eventually("the leader makes the key", made)
        answer = await http.get(f"/decisions/{watched.namespace}/chat", headers={KEY_HEADER: str(await key())})
        assert answer.status_code == 200
        assert await running.stop() == 0
    assert server.forbidden(LIMITED_USER) == []
