"""The upgrade of release 0.1.0, by the commands of docs/upgrades.md, on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.administrator import Shell
from tests.integration.apiserver import REPO, ApiServer, api_server, free_port
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, client, eventually, operator
from tests.integration.pages import commands
from tests.releases.recorded import CORPUS, RELEASE, resource

from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, EVENT
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

NAMESPACE = "default"
# One of each kind of resource; tests/releases renders all of the corpus.
NAMES = (
    "01-minimal",
    "06-llama-70b-rdma",
    "11-engine-every-field",
    "17-pod-template-merges",
    "29-predictive-every-field",
    "32-queue-policy",
    "34-router-every-field",
    "39-suspended",
)
OLD = {"DISAGG_WORKER_IMAGE": "worker:0.1.0", "DISAGG_ROUTER_IMAGE": "router:0.1.0"}
# How long the operator may take for all of them on a machine that does much else.
_OF_ALL_S = 90.0
NEW = {"DISAGG_WORKER_IMAGE": "worker:0.2.0", "DISAGG_ROUTER_IMAGE": "router:0.2.0"}


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Run an API server of its own, because the CRDs of its cluster are those of 0.1.0 at first."""
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


@contextlib.asynccontextmanager
async def released_operator(server: ApiServer, folder: Path) -> AsyncIterator[None]:
    with zipfile.ZipFile(RELEASE / "disagg-0.1.0-py3-none-any.whl") as wheel:
        wheel.extractall(folder / "released")
    async with operator(server, folder, "", PYTHONPATH=str(folder / "released"), **OLD) as running:
        yield
        await running.stop()


async def conditions(kube: Any) -> dict[str, dict[str, Obj]]:
    """Return the conditions of each resource by type."""
    found = await kube.list(DISAGG_DEPLOYMENT, NAMESPACE)
    return {o["metadata"]["name"]: {c["type"]: c for c in o.get("status", {}).get("conditions", [])} for o in found}


async def templates(kube: Any) -> dict[str, Obj]:
    return {d["metadata"]["name"]: d["spec"]["template"] for d in await kube.list(DEPLOYMENT, NAMESPACE)}


async def told(kube: Any, reason: str) -> list[str]:
    """Return the names of the resources that have an event with this reason, sorted."""
    events = [e for e in await kube.list(EVENT, NAMESPACE) if e["reason"] == reason]
    return sorted(e["involvedObject"]["name"] for e in events)


def resources() -> str:
    """Return the resources as YAML; the first one is named `chat`."""
    names = {name: "chat" if name == NAMES[0] else f"r{name}" for name in NAMES}
    return yaml.safe_dump_all([resource(name) | {"metadata": {"name": names[name]}} for name in NAMES])


async def environment(kube: Any) -> list[Obj]:
    """Return the environment of the operator that the chart installs."""
    found = await kube.get(DEPLOYMENT, "disagg-system", "disagg-operator")
    return list(found["spec"]["template"]["spec"]["containers"][0]["env"])


async def moved(cluster: Cluster, shell: Shell, ask: str, follow: str) -> dict[str, Obj]:
    """Move `chat` to the present runtime by two commands, and return the templates of all pods."""
    async with Kubelets(cluster).running(free_port()):
        assert "worker worker:0.1.0 -> worker:0.2.0" in shell.run(ask)
        assert "RolloutComplete" in await asyncio.to_thread(shell.run, follow)
    assert (await conditions(cluster.kube))["chat"]["RuntimeUpToDate"]["status"] == "True"
    return await templates(cluster.kube)


def images_of_chat(found: dict[str, Obj]) -> list[tuple[str, str]]:
    """Return (name, image) of each Deployment of `chat`, without the hash of a revision, sorted."""
    images = {name: t["spec"]["containers"][0]["image"] for name, t in found.items() if name.startswith("chat-")}
    return sorted((re.sub("-[0-9a-f]{10}$", "", name), image) for name, image in images.items())


def others(found: dict[str, Obj]) -> dict[str, Obj]:
    return {name: template for name, template in found.items() if not name.startswith("chat-")}


async def test_an_upgrade_of_0_1_0_changes_no_pod_and_moves_on_request(upgraded: ApiServer, tmp_path: Path) -> None:
    kube, shell = client(upgraded), Shell(upgraded, tmp_path)
    cluster = Cluster(kube, NAMESPACE)
    apply_crds, upgrade, list_updates, ask, follow, move_all = commands("docs/upgrades.md")
    shutil.copy(RELEASE / "disagg-0.1.0.tgz", tmp_path)
    shell.run(f"helm package {REPO}/helm/disagg && mv disagg-0.2.0-*.tgz disagg-0.2.0.tgz")
    shell.run("helm install disagg disagg-0.1.0.tgz -n disagg-system --create-namespace --set logLevel=DEBUG")
    async with contextlib.AsyncExitStack() as rest:
        async with released_operator(upgraded, tmp_path):
            (tmp_path / "resources.yaml").write_text(resources())
            shell.run("kubectl apply --server-side -f resources.yaml")

            async def all_rendered() -> bool:
                return len(await templates(kube)) == 3 * len(NAMES)

            await eventually("the released operator has rendered all", all_rendered, _OF_ALL_S)
            before = await templates(kube)
            shell.run(apply_crds)
            shell.run(upgrade)
            assert {"name": "DISAGG_LOG_LEVEL", "value": "DEBUG"} in await environment(kube)
            # The old one has no Lease: for a while, both write.
            running = await rest.enter_async_context(operator(upgraded, tmp_path, "", **NEW))

            async def one_accepted() -> bool:
                return any("RuntimeUpToDate" in of for of in (await conditions(kube)).values())

            await eventually("the new operator has reconciled one", one_accepted)

        async def all_accepted() -> bool:
            found = await conditions(kube)
            return len(found) == len(NAMES) and all("RuntimeUpToDate" in of for of in found.values())

        await eventually("the new operator has reconciled all", all_accepted, _OF_ALL_S)
        assert await templates(kube) == before
        listed = shell.run(list_updates)
        assert re.search(r"default +chat +.*worker worker:0.1.0 -> worker:0.2.0", listed), listed
        assert "chat" in await told(kube, "RuntimeUpdateAvailable")

        # An edit rolls the pods, but keeps their runtime.
        await cluster.apply_resource("chat", **resource(NAMES[0])["spec"], engine={"dtype": "float32"})

        async def edited() -> bool:
            found = (await templates(kube))["chat-decode"]["spec"]["containers"][0]
            return {"name": "DISAGG_DTYPE", "value": "float32"} in found["env"]

        await eventually("the edit reaches the pods", edited)
        assert (await templates(kube))["chat-decode"]["spec"]["containers"][0]["image"] == "worker:0.1.0"

        now = await moved(cluster, shell, ask, follow)
        assert images_of_chat(now) == [
            ("chat-decode", "worker:0.2.0"), ("chat-prefill", "worker:0.2.0"), ("chat-router", "router:0.2.0")
        ]  # fmt: skip
        assert others(now) == others(before)
        assert await running.stop() == 0

    shell.run(move_all)
    assert {"name": "DISAGG_RUNTIME_UPDATES", "value": "2"} in await environment(kube)
    await kube.close()


def test_every_stored_resource_can_be_written_under_the_new_crd(upgraded: ApiServer, tmp_path: Path) -> None:
    """A rule that is newer than a resource refuses no write that leaves its field alone."""
    shell = Shell(upgraded, tmp_path)
    resources = [resource(name) | {"metadata": {"name": f"stored-{i}"}} for i, name in enumerate(CORPUS)]
    touched = [d | {"metadata": d["metadata"] | {"labels": {"touched": "yes"}}} for d in resources]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(resources))
    (tmp_path / "touched.yaml").write_text(yaml.safe_dump_all(touched))
    for crds in (RELEASE / "crds", REPO / "crds"):
        for path in sorted(crds.glob("*.yaml")):
            shell.run(f"kubectl apply --server-side --force-conflicts -f {path}")
        shell.run("kubectl wait --for=condition=Established crd --all --timeout=30s")
        if crds.parent == RELEASE:
            shell.run("kubectl apply --server-side --field-manager=test -f all.yaml")
    shell.run("kubectl apply --server-side --field-manager=test --dry-run=server -f touched.yaml")
