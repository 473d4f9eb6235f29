"""CRDs that come late, are upgraded and downgraded, and an API server that dies.

The API server is one of the test's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from tests.integration.apiserver import REPO, Machine, mortal_api_server
from tests.integration.cluster_state import uids
from tests.integration.edited_resource import edit, shown
from tests.integration.operator_process import Cluster, Operator, client, eventually, operator
from tests.releases.recorded import RELEASE

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import EVENT
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
# The CRDs of 0.1.0 know neither this engine nor its arguments.
NEWER = {"engine": {"type": "vllm", "args": ["--seed=7"]}, "model": {"uri": "hf://org/name"}}
SETTINGS = {"DISAGG_RESYNC_INTERVAL_S": "0.5", "DISAGG_SCRAPE_INTERVAL_S": "1"}


async def install(cluster: Cluster, folder: Path) -> None:
    """Install the CRDs of a folder as `kubectl apply --server-side` does."""
    for path in sorted(folder.glob("*.yaml")):
        crd: Obj = yaml.safe_load(path.read_text())
        params = {"fieldManager": "test", "force": "true"}
        await cluster.raw("PATCH", f"{_CRDS}/{crd['metadata']['name']}", crd, "application/apply-patch+yaml", params)


async def arguments(cluster: Cluster) -> list[str] | None:
    """Return the engine's arguments of the newer resource as the API server shows them."""
    found: list[str] | None = (await cluster.resource("newer"))["spec"]["engine"].get("args")
    return found


async def works(what: str, call: Callable[[], Awaitable[Obj]]) -> None:
    """Repeat a request until the API server, which has just got new CRDs, carries it out."""

    async def done() -> bool:
        try:
            return bool(await call())
        except KubeError:
            return False

    await eventually(what, done)


async def crds_come_and_go(cluster: Cluster, running: Operator) -> None:
    async def waits() -> bool:
        return "first list: GET" in running.log.read_text()

    await eventually("it waits for the CRDs", waits)
    await install(cluster, RELEASE / "crds")
    await works("the old kinds are served", lambda: edit(cluster, "one"))
    await shown(cluster, "one")
    await eventually("accepted", lambda: cluster.accepted("chat"))
    old = await cluster.templates()
    await install(cluster, REPO / "crds")
    await works("the new kinds are served", lambda: cluster.apply_resource("newer", **NEWER))
    await eventually("accepted", lambda: cluster.accepted("newer"))
    now = await cluster.templates()
    assert {name: now[name] for name in old} == old

    # Downgraded, the API server shows another resource of the same generation.
    await install(cluster, RELEASE / "crds")

    async def pruned() -> bool:
        return await arguments(cluster) is None

    await eventually("the new fields are dropped", pruned)

    async def told() -> bool:
        found = [e for e in await cluster.kube.list(EVENT, cluster.namespace) if e["reason"] == "FieldsDropped"]
        return [e["involvedObject"]["name"] for e in found] == ["newer"] and "spec.engine.args" in found[0]["message"]

    await eventually("that is told", told)
    await edit(cluster, "two")
    await shown(cluster, "two")
    still = await cluster.templates()
    assert {name: still[name] for name in still if name.startswith("newer")} == {
        name: now[name] for name in now if name.startswith("newer")
    }

    # Nobody has written to it, so nothing is lost.
    await install(cluster, REPO / "crds")

    async def back() -> bool:
        return await arguments(cluster) == ["--seed=7"]

    await eventually("the fields are back", back)
    await works("it can be edited again", lambda: cluster.apply_resource("newer", **NEWER, decode={"replicas": 3}))

    async def carried_out() -> bool:
        return await cluster.replicas("decode", "newer") == (3, 3)

    await eventually("and is carried out", carried_out)


async def api_server_dies(cluster: Cluster, running: Operator, machine: Machine) -> None:
    before, pods = await uids(cluster), await cluster.templates()
    await edit(cluster, "three")
    machine.kill()

    async def away() -> bool:
        return "ClientConnectorError" in running.log.read_text()

    await eventually("calls fail", away)
    machine.start()
    await shown(cluster, "three", 60.0)
    await edit(cluster, "four")
    await shown(cluster, "four")
    assert running.process.returncode is None
    assert await uids(cluster) == before
    after = await cluster.templates()
    assert {k: v for k, v in after.items() if k.startswith("newer")} == {
        k: v for k, v in pods.items() if k.startswith("newer")
    }


async def test_f19_f23_f24_crds_that_come_and_go_and_an_api_server_that_dies(tmp_path: Path) -> None:
    with mortal_api_server(tmp_path) as (server, machine):
        cluster = Cluster(client(server), "default")
        async with operator(server, tmp_path, "default", **SETTINGS) as running:
            await crds_come_and_go(cluster, running)
            await api_server_dies(cluster, running, machine)
            assert await running.stop() == 0
        await cluster.kube.close()
