"""An installation tells whether it works: without CRDs, without rights, and when all is well."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.integration.administrator import Shell
from tests.integration.apiserver import REPO, ApiServer, api_server
from tests.integration.chart_rights import chart_rights
from tests.integration.conftest import install_crds
from tests.integration.operator_process import Cluster, Operator, client, eventually, operator
from tests.integration.pages import commands

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Run an API server that knows no kind of disagg."""
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


async def answer(running: Operator, path: str) -> tuple[int, str]:
    async with httpx.AsyncClient(trust_env=False) as http:
        found = await http.get(f"http://127.0.0.1:{running.port}/{path}")
        return found.status_code, found.text


async def check(server: ApiServer, running: Operator) -> tuple[int, str]:
    """Run the program of `helm test`, and return its exit status and what it prints."""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
        "PYTHONPATH": f"{REPO}/operator:{REPO}/worker",
        "KUBECONFIG": str(server.kubeconfig),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c",
        "import asyncio, sys; from disagg_operator.cli import installation_check as c; "
        "found = asyncio.run(c.problems(sys.argv[1])); print('\\n'.join(found)); sys.exit(bool(found))",
        f"http://127.0.0.1:{running.port}", env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    return int(process.returncode or 0), out.decode()


async def test_without_crds_an_operator_is_alive_and_not_healthy_until_they_are_installed(
    bare: ApiServer, tmp_path: Path
) -> None:
    cluster = Cluster(client(bare), "default")
    try:
        async with operator(bare, tmp_path, "") as running:

            async def missing() -> bool:
                status, text = await answer(running, "healthz")
                return status == 503 and "disaggdeployments can't be listed" in text

            await eventually("the operator says what is missing", missing)
            assert (await answer(running, "livez"))[0] == 200
            status, out = await check(bare, running)
            assert status == 1
            assert "the API server does not serve disaggdeployments.disagg.dev" in out
            assert "not healthy" in out
            await install_crds(cluster)

            async def well() -> bool:
                return (await answer(running, "healthz"))[0] == 200

            await eventually("it is healthy once they are there", well)
            assert await check(bare, running) == (0, "\n")
            await cluster.apply_resource()

            async def told() -> bool:
                text = (await answer(running, "metrics"))[1]
                labels = 'name="chat",namespace="default",reason="Valid",status="True",type="Accepted"'
                return f"disagg_condition{{{labels}}} 1.0" in text

            await eventually("the resource is carried out, and its conditions are a series", told)
            assert await running.stop() == 0
    finally:
        await cluster.kube.close()


async def test_an_operator_that_may_not_use_the_lease_is_not_healthy(bare: ApiServer, tmp_path: Path) -> None:
    cluster = Cluster(client(bare), "default")
    await install_crds(cluster)
    limited = replace(bare, kubeconfig=bare.limited_kubeconfig)
    values = ("watchNamespaces={default}", "rbac.nodes=false", "rbac.aggregatedRoles=false")
    lease = {"DISAGG_LEASE_NAMESPACE": "kube-system"}  # the chart's Role is in another namespace
    async with chart_rights(cluster, *values), operator(limited, tmp_path, "default", **lease) as running:

        async def refused() -> bool:
            status, text = await answer(running, "healthz")
            return status == 503 and "the Lease can't be used" in text

        await eventually("the operator says so", refused)
        assert (await answer(running, "livez"))[0] == 200
        assert await running.stop() == 0
    await cluster.kube.close()


def test_the_commands_of_the_page_on_the_installation_work(bare: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "helm").symlink_to(REPO / "helm")
    shell = Shell(bare, tmp_path)
    install, check_all, namespace, install_one, may = commands("docs/installation.md")
    shell.run(install)
    assert "deployment.apps/disagg-operator serverside-applied" in shell.run(check_all)
    shell.run(namespace)
    shell.run(install_one)
    assert shell.run(may).strip() == "yes"
    with pytest.raises(AssertionError, match="no"):
        shell.run(may.replace("-n ml", "-n default"))
    found = shell.run("helm get manifest disagg-ml -n disagg-ml | kubectl get -f - -o name")
    assert "clusterrole" not in found
    assert "role.rbac.authorization.k8s.io/disagg-ml-operator" in found
