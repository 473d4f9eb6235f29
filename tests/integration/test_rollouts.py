"""Rollouts by the operator process, and the commands of docs/rollouts.md, on a real API server."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import REPO, ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.pages import commands
from tests.ports import free_port

from disagg_operator.kube.resources import CONTROLLER_REVISION, DEPLOYMENT
from disagg_operator.rollout import looking, revisions

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]
TWO: dict[str, Any] = {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}
_RUN_S = 60.0


async def complete(cluster: Cluster) -> bool:
    resource = await cluster.resource()
    seen = resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    ready = (await cluster.condition("Ready"))["status"] == "True"
    return bool(seen and ready and (await cluster.condition("Progressing"))["reason"] == "RolloutComplete")


async def roles(cluster: Cluster) -> dict[str, list[str]]:
    """Return the names of the Deployments of each pool."""
    found = looking.workloads(await cluster.kube.list(DEPLOYMENT, cluster.namespace))
    return {role: sorted(o["metadata"]["name"] for key, o in found.items() if key[0] == role) for role in TWO}


async def numbers(cluster: Cluster) -> list[int]:
    found = await cluster.kube.list(CONTROLLER_REVISION, cluster.namespace)
    return [r.number for r in revisions.known_revisions(found)]


async def command(server: ApiServer, cluster: Cluster, line: str) -> str:
    """Run a command of the documents in the namespace of the test and return what it prints."""
    program, *words = line.split()
    assert program == "disagg"
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("disagg")), *words, "-n", cluster.namespace,
        env={**os.environ, "KUBECONFIG": str(server.kubeconfig), "PYTHONPATH": f"{REPO}/operator:{REPO}/worker"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), _RUN_S)
    assert process.returncode == 0, f"{line}: {out.decode()}"
    return out.decode()


async def test_the_commands_of_the_page_on_rollouts(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    kubelets = Kubelets(cluster)
    async with operator(server, tmp_path, cluster.namespace), kubelets.running(free_port()):
        await cluster.apply_resource(**TWO)
        await eventually("the first revision serves", lambda: complete(cluster))
        assert await roles(cluster) == {"prefill": ["chat-prefill"], "decode": ["chat-decode"]}
        kubelets.least = 99
        await cluster.apply_resource(**TWO, model={"uri": "file:///models/other"})
        said = {line: await command(server, cluster, line) for line in commands("docs/rollouts.md")}
        assert "RolloutComplete" in said["disagg rollout status chat"]
        assert "model.uri" in said["disagg rollout history chat"]
        assert "revision 1 " in said["disagg rollout undo chat"]
        assert "revision 2 " in said["disagg rollout undo chat --to-revision 2"]
        assert "paused" in said["disagg rollout pause chat"]
        await command(server, cluster, "disagg rollout status chat")
        spec = (await cluster.resource())["spec"]
        assert spec["model"]["uri"] == "file:///models/other"
        assert "disagg.dev/restarted-at" in spec["prefill"]["podTemplate"]["metadata"]["annotations"]
        assert {role: len(found) for role, found in (await roles(cluster)).items()} == {"prefill": 1, "decode": 1}
        assert kubelets.least >= 1
    assert await numbers(cluster) == [3, 4, 5]


async def test_an_operator_that_is_killed_in_a_rollout_is_followed_by_one_that_ends_it(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    kubelets = Kubelets(cluster)
    async with kubelets.running(free_port()):
        async with operator(server, tmp_path, cluster.namespace) as first:
            await cluster.apply_resource(**TWO)
            await eventually("the first revision serves", lambda: complete(cluster))
            kubelets.least = 99
            await cluster.apply_resource(**TWO, engine={"dtype": "float32"})

            async def begun() -> bool:
                return len((await roles(cluster))["prefill"]) == 2

            await eventually("a second Deployment", begun)
            first.process.kill()
        async with operator(server, tmp_path, cluster.namespace):
            # The Lease of the one that was killed must run out first.
            await eventually("the rollout is complete", lambda: complete(cluster), 90.0)
            found = await roles(cluster)
        assert all(len(names) == 1 for names in found.values())
        assert found["prefill"] != ["chat-prefill"]
        assert kubelets.least >= 1
