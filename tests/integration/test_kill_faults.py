"""F16: operators that are killed at their writes in a rollout and while pools are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.integration.cluster_state import collect_garbage, delete_resource, rests, snapshot
from tests.integration.edited_resource import QUICK, resting_operator
from tests.integration.faulty_api import FaultyApi
from tests.integration.killed_operators import killed_at_writes
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.ports import free_port

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
