"""F16: operators that are killed at their writes in a rollout, a drain, and before a deletion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer, free_port
from tests.integration.cluster_state import collect_garbage, delete_pods, delete_resource, objects, rests, snapshot
from tests.integration.edited_resource import QUICK, edit, resting_operator, shown
from tests.integration.faulty_api import Asked, FaultyApi
from tests.integration.killed_operators import killed_at_writes
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, Operator, Pods, eventually, operator

from disagg_operator.kube.pods import DRAIN_UNTIL
from disagg_operator.kube.resources import POD, annotations_of
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.long]

WAIT_S = 120.0
TWO: dict[str, Any] = {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}


async def complete(cluster: Cluster) -> bool:
    resource = await cluster.resource()
    seen = resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    return bool(seen and (await cluster.condition("Progressing"))["reason"] == "RolloutComplete")


@pytest.mark.parametrize("carried_out", [True, False], ids=["after each", "before each"])
async def test_f16_killed_in_a_rollout_it_ends_as_if_it_had_not_been_and_pairs_serve_meanwhile(
    cluster: Cluster, api: FaultyApi, tmp_path: Path, carried_out: bool
) -> None:
    kubelets = Kubelets(cluster)

    async def done() -> bool:
        return await complete(cluster)

    async with kubelets.running(free_port()):
        ends = []
        for killed in (False, True):
            async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
                await cluster.apply_resource(**TWO)
                await eventually("the first revision serves", done, WAIT_S)
                await rests(api)
                if not killed:
                    await cluster.apply_resource(**TWO, engine={"dtype": "float32"})
                    await eventually("the rollout is complete", done, WAIT_S)
                    await rests(api)
                assert await running.stop() == 0
            if killed:
                kubelets.least = 99
                await cluster.apply_resource(**TWO, engine={"dtype": "float32"})
                died = await killed_at_writes(api, cluster, tmp_path, 2, carried_out=carried_out, done=done)
                assert died > 2
                assert kubelets.least >= 1
            ends.append(await snapshot(cluster))
            await delete_resource(cluster)
            await collect_garbage(cluster)
    assert ends[1] == ends[0]


async def test_f16_killed_while_pools_are_scaled_they_get_their_sizes(
    cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with resting_operator(api, cluster, tmp_path) as running:
        assert await running.stop() == 0
    for decode, prefill in ((5, 3), (1, 2), (2, 1)):
        await cluster.scale("chat-decode", decode)
        await cluster.scale("chat-prefill", prefill)

        async def scaled(decode: int = decode, prefill: int = prefill) -> bool:
            return [await cluster.replicas(role) for role in ("decode", "prefill")] == [(decode,) * 2, (prefill,) * 2]

        for every in (1, 2):
            await killed_at_writes(api, cluster, tmp_path, every, carried_out=every == 1, done=scaled)
        assert await cluster.replicas("decode") == (decode, decode)
        assert await cluster.replicas("prefill") == (prefill, prefill)


async def marked(cluster: Cluster) -> list[Obj]:
    return [pod for pod in await cluster.kube.list(POD, cluster.namespace) if DRAIN_UNTIL in annotations_of(pod)]


async def test_f16_killed_in_a_drain_busy_workers_stay_and_the_same_ones_go(
    cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    addresses, port, pods = [f"127.0.0.{n}" for n in (21, 22, 23)], free_port(), Pods()
    await pods.start(addresses, port)
    try:
        async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
            await edit(cluster, "one", decode={"replicas": 3})
            await shown(cluster, "one", WAIT_S)
            for index, address in enumerate(addresses):
                await cluster.run_pod("decode", index, address, port)
                pods.unfinished[address] = 1
            await rests(api)
            assert await running.stop() == 0
        await cluster.scale("chat-decode", 1)

        async def two_are_marked() -> bool:
            return len(await marked(cluster)) == 2

        died = await killed_at_writes(api, cluster, tmp_path, 1, carried_out=True, done=two_are_marked)
        assert died > 1
        assert await cluster.replicas("decode") == (1, 3)
        going = {pod["metadata"]["name"] for pod in await marked(cluster)}
        assert len(going) == 2
        for address in addresses:
            pods.unfinished[address] = 0

        async def shrunk() -> bool:
            return await cluster.replicas("decode") == (1, 1)

        await killed_at_writes(api, cluster, tmp_path, 1, carried_out=True, done=shrunk)
        await killed_at_writes(api, cluster, tmp_path, 2, carried_out=False, done=shrunk)
        assert {pod["metadata"]["name"] for pod in await marked(cluster)} == going
    finally:
        await pods.stop()
        await delete_pods(cluster)


@pytest.mark.parametrize("at", [1, 3, 6, 10, 15])
async def test_f16_killed_before_a_deletion_the_next_one_leaves_nothing(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path, at: int
) -> None:
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:

        async def kills(asked: Asked, running: Operator = running) -> bool:
            if asked.writes and len(api.writes) >= at and running.process.returncode is None:
                running.process.kill()
                return False
            return True

        api.tells = kills
        await edit(cluster, "one")

        async def dead() -> bool:
            return running.process.returncode is not None

        await eventually(f"it dies at write {at}", dead, WAIT_S)
    api.without_faults()
    await delete_resource(cluster)
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as again:
        await rests(api)
        await collect_garbage(cluster)
        await rests(api)
        assert await objects(cluster) == []
        assert await again.stop() == 0
