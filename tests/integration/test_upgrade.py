"""The upgrade of release 0.1.0, by the commands of docs/upgrades.md, on a real API server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.apiserver import REPO, ApiServer, api_server, program_path
from tests.integration.operator_process import Cluster, client, eventually, operator
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
NEW = {"DISAGG_WORKER_IMAGE": "worker:0.2.0", "DISAGG_ROUTER_IMAGE": "router:0.2.0"}


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """Run an API server of its own, because the CRDs of its cluster are those of 0.1.0 at first."""
    with api_server(tmp_path_factory.mktemp("apiserver")) as running:
        yield running


def commands() -> list[str]:
    """Return the commands of the page."""
    blocks = re.findall(r"```console\n(.*?)```", (REPO / "docs/upgrades.md").read_text(), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


class Shell:
    """A shell of somebody who administers the cluster, in a folder with both charts."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._folder = folder
        programs = {str(Path(program_path(name)).parent): None for name in ("helm", "kubectl")}
        self._environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
            "KUBECONFIG": str(server.kubeconfig),
            "PATH": ":".join([*programs, os.environ["PATH"]]),
            "HOME": str(folder),
        }

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def charts(self) -> None:
        shutil.copy(RELEASE / "disagg-0.1.0.tgz", self._folder)
        self.run(f"helm package {REPO}/helm/disagg && mv disagg-0.2.0-*.tgz disagg-0.2.0.tgz")


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


async def environment(kube: Any) -> list[Obj]:
    """Return the environment of the operator that the chart installs."""
    found = await kube.get(DEPLOYMENT, "disagg-system", "disagg-operator")
    return list(found["spec"]["template"]["spec"]["containers"][0]["env"])


async def test_an_upgrade_of_0_1_0_changes_no_pod_and_moves_on_request(upgraded: ApiServer, tmp_path: Path) -> None:
    kube, shell = client(upgraded), Shell(upgraded, tmp_path)
    cluster = Cluster(kube, NAMESPACE)
    apply_crds, upgrade, list_updates, ask, wait, move_all = commands()
    shell.charts()
    shell.run("helm install disagg disagg-0.1.0.tgz -n disagg-system --create-namespace --set logLevel=DEBUG")
    async with released_operator(upgraded, tmp_path):
        names = {name: "chat" if name == NAMES[0] else f"r{name}" for name in NAMES}
        made = [resource(name) | {"metadata": {"name": names[name]}} for name in NAMES]
        (tmp_path / "resources.yaml").write_text(yaml.safe_dump_all(made))
        shell.run("kubectl apply --server-side -f resources.yaml")

        async def all_rendered() -> bool:
            return len(await templates(kube)) == 3 * len(NAMES)

        await eventually("the released operator has rendered all", all_rendered)
    before = await templates(kube)

    shell.run(apply_crds)
    shell.run(upgrade)
    assert {"name": "DISAGG_LOG_LEVEL", "value": "DEBUG"} in await environment(kube)

    async with operator(upgraded, tmp_path, "", **NEW) as running:

        async def all_accepted() -> bool:
            found = await conditions(kube)
            return len(found) == len(NAMES) and all("RuntimeUpToDate" in of for of in found.values())

        await eventually("the new operator has reconciled all", all_accepted)
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

        shell.run(ask)
        shell.run(wait)
        now = await templates(kube)
        images = {name: now[name]["spec"]["containers"][0]["image"] for name in now if name.startswith("chat-")}
        assert images == {"chat-prefill": "worker:0.2.0", "chat-decode": "worker:0.2.0", "chat-router": "router:0.2.0"}
        assert {k: v for k, v in now.items() if k not in images} == {k: v for k, v in before.items() if k not in images}
        assert await running.stop() == 0

    shell.run(move_all)
    assert {"name": "DISAGG_RUNTIME_UPDATES", "value": "2"} in await environment(kube)
    await kube.close()


def test_every_stored_resource_is_valid_under_the_new_crd(upgraded: ApiServer, tmp_path: Path) -> None:
    """It is applied as it was, so all rules are evaluated."""
    shell = Shell(upgraded, tmp_path)
    for path in sorted((REPO / "crds").glob("*.yaml")):
        shell.run(f"kubectl apply --server-side --force-conflicts -f {path}")
    shell.run("kubectl wait --for=condition=Established crd --all --timeout=30s")
    documents = []
    for name in CORPUS:
        document = resource(name)
        documents.append(document | {"metadata": {"name": document["metadata"]["name"]}})
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(documents))
    shell.run("kubectl apply --server-side --dry-run=server --field-manager=test --force-conflicts -f all.yaml")
