"""A rollout that meets pools without workers goes back like any other: on a real API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.ports import free_port

from disagg_operator.kube.resources import DEPLOYMENT, annotations_of, labels_of, name_of
from disagg_operator.rollout.looking import SERVED_ANNOTATION
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_POOL

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]
OTHER = {"uri": "file:///models/other", "name": "other"}
BACK = {"progressDeadlineSeconds": 3, "autoRollback": True}


class BreakingKubelets(Kubelets):
    """Kubelets on which nothing new becomes ready once `broken` is set."""

    broken = False

    async def _create(self, deployment: Obj) -> None:
        if not (self.broken and SERVED_ANNOTATION not in annotations_of(deployment)):
            await super()._create(deployment)


async def sizes(cluster: Cluster) -> dict[str, int]:
    """Return the replicas of the Deployments of decode workers by name."""
    found = await cluster.kube.list(DEPLOYMENT, cluster.namespace, f"{LABEL_POOL}=decode")
    return {name_of(o): o["spec"]["replicas"] for o in found if labels_of(o).get(LABEL_POOL) == "decode"}


async def router_name(cluster: Cluster) -> str:
    found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-router")
    assert found is not None
    env = found["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(e["value"] for e in env if e["name"] == "DISAGG_MODEL_NAME"))


async def test_what_was_edited_while_suspended_and_never_serves_goes_back(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    kubelets = BreakingKubelets(cluster)

    async def says(kind: str, status: str, reason: str) -> bool:
        condition = await cluster.condition(kind)
        return (condition["status"], condition["reason"]) == (status, reason)

    async with operator(server, tmp_path, cluster.namespace) as first:
        await cluster.apply_resource(rollout=BACK)
        async with kubelets.running(free_port()):
            await eventually("it serves", lambda: says("Ready", "True", "Ready"))
            await cluster.apply_resource(rollout=BACK, suspend=True)
            await eventually("no worker", lambda: says("Available", "False", "Suspended"))
            kubelets.broken = True
            await cluster.apply_resource(rollout=BACK, suspend=True, model=OTHER)

            async def declared() -> bool:
                return await router_name(cluster) == "other" and len(await sizes(cluster)) == 2

            await eventually("the routers know the new name", declared)
            assert set((await sizes(cluster)).values()) == {0}
            assert await first.stop() == 0
            async with operator(server, tmp_path, cluster.namespace):
                await cluster.apply_resource(rollout=BACK, model=OTHER)

                async def begun() -> bool:
                    found = await sizes(cluster)
                    return found.pop("chat-decode") == 0 and set(found.values()) == {2}

                await eventually("the new revision begins", begun)
                await eventually("it goes back", lambda: says("Progressing", "False", "RolledBack"))
                await eventually("and serves", lambda: says("Available", "True", "PairsHealthy"))

                async def back() -> bool:
                    assert await sizes(cluster) == {"chat-decode": 2}
                    return await router_name(cluster) == "stdlib-llama"

                await eventually("under its old name", back)
