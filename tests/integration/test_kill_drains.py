"""F16: operators that are killed at their writes while workers drain and before a deletion."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.integration.cluster_state import collect_garbage, delete_pods, delete_resource, objects, rests
from tests.integration.edited_resource import QUICK, edit, shown
from tests.integration.faulty_api import Asked, FaultyApi
from tests.integration.killed_operators import killed_at_writes
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, Operator, Pods, eventually, operator
from tests.integration.test_kill_faults import TWO, complete
from tests.ports import free_port

from disagg_operator.kube.pods import DRAIN_UNTIL
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, POD, annotations_of, name_of

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.long]

WAIT_S = 120.0
ADDRESSES = tuple(f"127.0.0.{n}" for n in (21, 22, 23))


async def marked(cluster: Cluster) -> set[str]:
    """Return the names of the pods that are to go."""
    pods = await cluster.kube.list(POD, cluster.namespace)
    return {name_of(pod) for pod in pods if DRAIN_UNTIL in annotations_of(pod)}


@contextlib.asynccontextmanager
async def busy_workers(cluster: Cluster, api: FaultyApi, folder: Path) -> AsyncIterator[Pods]:
    """Run three decode workers, each with a request, that an operator has found and left."""
    port, pods = free_port(), Pods()
    await pods.start([*ADDRESSES], port)
    try:
        async with operator(api.server, folder, cluster.namespace, **QUICK) as running:
            await edit(cluster, "one", decode={"replicas": 3})
            await shown(cluster, "one", WAIT_S)
            for index, address in enumerate(ADDRESSES):
                await cluster.run_pod("decode", index, address, port)
                pods.unfinished[address] = 1
            await rests(api)
            assert await running.stop() == 0
        yield pods
    finally:
        await pods.stop()
        await delete_pods(cluster)


async def drained(cluster: Cluster, api: FaultyApi, folder: Path) -> set[str]:
    """Scale decode to one worker, while operators die after each write, until two have their mark;
    return these.
    """
    await cluster.scale("chat-decode", 1)

    async def two_are_marked() -> bool:
        return len(await marked(cluster)) == 2

    assert await killed_at_writes(api, cluster, folder, 1, carried_out=True, done=two_are_marked) > 1
    assert await cluster.replicas("decode") == (1, 3)
    return await marked(cluster)


async def test_f16_killed_in_a_drain_busy_workers_stay_and_the_same_ones_go(
    cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with busy_workers(cluster, api, tmp_path) as pods:
        going = await drained(cluster, api, tmp_path)
        for address in ADDRESSES:
            pods.unfinished[address] = 0

        async def shrunk() -> bool:
            return await cluster.replicas("decode") == (1, 1)

        await killed_at_writes(api, cluster, tmp_path, 2, carried_out=False, done=shrunk)
        assert await shrunk()
        # The Deployment's controller deletes those that it is told to, which are these.
        assert await marked(cluster) == going


async def test_f16_killed_as_workers_are_called_back_all_of_them_stay(
    cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    async with busy_workers(cluster, api, tmp_path):
        await drained(cluster, api, tmp_path)
        await cluster.scale("chat-decode", 3)

        async def none_is_marked() -> bool:
            return not await marked(cluster)

        await killed_at_writes(api, cluster, tmp_path, 1, carried_out=True, done=none_is_marked)
        await killed_at_writes(api, cluster, tmp_path, 2, carried_out=False, done=none_is_marked)
        assert (await marked(cluster), await cluster.replicas("decode")) == (set(), (3, 3))


async def killed_at(api: FaultyApi, running: Operator, number: int) -> None:
    """Kill an operator when its write of this number has been carried out, if there is one."""
    before, rested = len(api.writes), api.resyncs

    async def kills(asked: Asked) -> bool:
        if asked.writes and len(api.writes) - before >= number and running.process.returncode is None:
            running.process.kill()
            return False
        return True

    async def over() -> bool:
        return running.process.returncode is not None or api.resyncs > rested + 8

    api.tells = kills
    await eventually(f"it dies at write {number} or has nothing to write", over, WAIT_S)
    api.without_faults()


async def nothing_is_left(cluster: Cluster, api: FaultyApi, folder: Path) -> None:
    """Run another operator beside the garbage collector, and check that no object is left."""
    async with operator(api.server, folder, cluster.namespace, **QUICK) as running:
        await rests(api)
        await collect_garbage(cluster)
        await rests(api)
        assert await objects(cluster) == []
        assert await running.stop() == 0


@pytest.mark.parametrize("at", [1, 3, 6, 10, 15])
async def test_f16_killed_in_the_creation_of_what_is_deleted_then_the_next_one_leaves_nothing(
    cluster: Cluster, api: FaultyApi, tmp_path: Path, at: int
) -> None:
    async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
        killing = asyncio.create_task(killed_at(api, running, at))
        await asyncio.sleep(0)
        await edit(cluster, "one")
        await killing
        assert running.process.returncode is not None
    await delete_resource(cluster)
    await nothing_is_left(cluster, api, tmp_path)


@pytest.mark.parametrize("at", [1, 2, 4, 7])
@pytest.mark.parametrize("policy", ["Background", "Foreground"])
async def test_f16_killed_in_the_rollout_of_what_is_deleted_then_the_next_one_leaves_nothing(
    cluster: Cluster, api: FaultyApi, tmp_path: Path, at: int, policy: str
) -> None:
    kubelets = Kubelets(cluster)
    async with kubelets.running(free_port()):
        async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as running:
            await cluster.apply_resource(**TWO)
            await eventually("the first revision serves", lambda: complete(cluster), WAIT_S)
            await rests(api)
            killing = asyncio.create_task(killed_at(api, running, at))
            await asyncio.sleep(0)
            await cluster.apply_resource(**TWO, engine={"dtype": "float32"})
            await killing
            assert running.process.returncode is not None
        # No controller of this cluster ends a deletion in the foreground: an operator sees it last.
        await delete_resource(cluster, policy=policy)
        if policy == "Foreground":
            async with operator(api.server, tmp_path, cluster.namespace, **QUICK) as again:
                before = len(api.writes)
                await rests(api)
                assert api.writes[before:] == [], "nothing is written to what is being deleted"
                assert await again.stop() == 0
            await _finish(cluster)
    await delete_pods(cluster)
    await nothing_is_left(cluster, api, tmp_path)


async def _finish(cluster: Cluster) -> None:
    """End a deletion in the foreground, as the garbage collector does."""
    path = DISAGG_DEPLOYMENT.path(cluster.namespace, "chat")
    await cluster.raw("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
