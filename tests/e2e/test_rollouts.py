"""Rollouts on a real kubelet under load: the workers change in every way, and no request fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import rig
from tests.e2e.traffic import expected, traffic

from access import router_url
from kubectl import REPO, SYSTEM_NAMESPACE, Cluster, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
NAME = "roll"
GPU, OTHER = "nvidia.com/gpu", "other-llama"
IMAGES = ("disagg.dev/worker:two-models", "disagg.dev/worker:two-models-again")
_LIMIT_S = 300.0
_IMAGES_FOLDER = Path(__file__).parent / "images"


def _pool(replicas: int) -> dict[str, Any]:
    return {"replicas": replicas, "accelerator": {"count": 1}, "resources": rig.SMALL}


@pytest.fixture(scope="module")
def fleet(cluster: Cluster) -> Cluster:
    """Return the cluster with two workers of one device in each pool, and two routers."""
    for tag in IMAGES:
        cluster.run(
            REPO / "e2e/cluster", "image", "--file", _IMAGES_FOLDER / "two-models.Dockerfile", "--context",
            _IMAGES_FOLDER, "--tag", tag, "--build-arg", "BASE=disagg.dev/worker:dev", timeout_s=600,
        )  # fmt: skip
    obj = rig.resource(NAME, "192.168.85.0/24", prefill=_pool(2), decode=_pool(2), router={"replicas": 2})
    obj["spec"]["engine"] = {"dtype": "float32", "image": IMAGES[0]}
    rig.apply(cluster, obj)
    rig.wait_ready(cluster, NAME, prefill=2, decode=2)
    return cluster


@pytest.fixture(scope="module")
def url(fleet: Cluster) -> Iterator[str]:
    with router_url(fleet, f"{NAME}-router") as found:
        yield found


def _workers(cluster: Cluster) -> set[str]:
    """Return the uids of the workers that are not terminating."""
    found = {**rig.pods(cluster, NAME, "prefill"), **rig.pods(cluster, NAME, "decode")}
    return {p["metadata"]["uid"] for p in found.values() if "deletionTimestamp" not in p["metadata"]}


def _told(cluster: Cluster, reason: str) -> bool:
    resource = cluster.get("dd", NAME)
    seen = conditions(resource).get("Progressing", {})
    return bool(seen.get("reason") == reason and seen["observedGeneration"] == resource["metadata"]["generation"])


async def _until(cluster: Cluster, what: str, done: Callable[[], bool]) -> None:
    await asyncio.to_thread(cluster.wait, what, done, _LIMIT_S, detail=lambda: rig.diagnosis(cluster, NAME))


async def _rolled(cluster: Cluster, **counts: int) -> None:
    await _until(cluster, "the rollout is complete", lambda: _told(cluster, "RolloutComplete"))
    await rig.until_ready(cluster, NAME, **(counts or {"prefill": 2, "decode": 2}))


async def _edit(cluster: Cluster, **spec: Any) -> None:
    await asyncio.to_thread(lambda: rig.edit(cluster, NAME, **spec))


@contextmanager
def _taken(cluster: Cluster, free: int) -> Iterator[None]:
    """Take all devices of the cluster that nothing holds, but for some."""
    (node,) = cluster.items("nodes")
    held = 0
    for pod in [p for p in cluster.items("pods") if p["status"]["phase"] in ("Running", "Pending")]:
        held += sum(int(c.get("resources", {}).get("limits", {}).get(GPU, 0)) for c in pod["spec"]["containers"])
    count = str(int(node["status"]["allocatable"][GPU]) - held - free)
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "pause", "image": IMAGES[0], "command": ["python3", "-c", "import signal; signal.pause()"],
        "resources": {"limits": {GPU: count}}, "securityContext": security,
    }  # fmt: skip
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }
    rig.apply(cluster, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "taken"}, "spec": spec})
    cluster.wait("the devices are taken", lambda: rig.is_ready(cluster.get("pod", "taken")), 60.0)
    try:
        yield
    finally:
        cluster.kubectl("delete", "pod", "taken", "--grace-period=0", "--force")


@pytest.mark.parametrize(
    "change",
    [{"image": IMAGES[1]}, {"blockSizeTokens": 32}, {"dtype": "bfloat16"}, {"dtype": "float32", "threads": 2}],
    ids=["image", "engine-flag", "dtype", "dtype-and-threads"],
)
async def test_an_edit_replaces_all_workers_and_no_request_fails(
    fleet: Cluster, url: str, change: dict[str, Any]
) -> None:
    before = _workers(fleet)
    async with traffic(url) as seen:
        await seen.more()
        await _edit(fleet, engine=change)
        await _rolled(fleet)
        await seen.more()
    assert seen.failures == []
    assert not before & _workers(fleet)


async def test_another_model_answers_under_its_own_name_alone(fleet: Cluster, url: str) -> None:
    """Old name and old weights serve until new weights serve under the new name."""
    before, known = _workers(fleet), await expected(url, rig.MODEL)
    async with traffic(url, known=known, leaves=True) as old:
        await old.more()
        await _edit(fleet, model={"uri": f"file:///models/{OTHER}"})
        await _until(fleet, "a new pair serves", lambda: len(_workers(fleet) - before) >= 2)
        served_until_now = len(old.answers)
        await _rolled(fleet)
        known |= await expected(url, OTHER)
        async with traffic(url, model=OTHER, known=known) as new:
            await new.more()
    assert (old.failures, old.wrong, new.failures, new.wrong) == ([], [], [], [])
    assert len(old.answers) >= served_until_now > 0
    assert len({a.weights for a in old.answers} | {a.weights for a in new.answers}) == 2
    assert all(known[rig.MODEL, i] != known[OTHER, i] for i in range(8))


async def test_a_model_is_taken_back_in_the_middle_and_no_serving_worker_goes(fleet: Cluster, url: str) -> None:
    before, known = _workers(fleet), await expected(url, OTHER)
    async with traffic(url, model=OTHER, known=known) as seen:
        await seen.more()
        await _edit(fleet, model={"uri": f"file:///models/{rig.MODEL}"})
        await _until(fleet, "a new worker has begun", lambda: bool(_workers(fleet) - before))
        await _edit(fleet, model={"uri": f"file:///models/{OTHER}"})
        await _rolled(fleet)
        await seen.more()
    assert (seen.failures, seen.wrong) == ([], [])
    assert _workers(fleet) == before


async def test_an_edit_in_the_middle_of_a_rollout_goes_straight_to_the_last_one(fleet: Cluster, url: str) -> None:
    before, known = _workers(fleet), await expected(url, OTHER)
    async with traffic(url, model=OTHER, known=known, leaves=True) as seen:
        await _edit(fleet, engine={"blockSizeTokens": 8})
        await _until(fleet, "a new worker has begun", lambda: bool(_workers(fleet) - before))
        await _edit(fleet, model={"uri": f"file:///models/{rig.MODEL}"})
        await _rolled(fleet)
    assert (seen.failures, seen.wrong) == ([], [])
    async with traffic(url, known=await expected(url, rig.MODEL)) as seen:
        await seen.more()
    assert (seen.failures, seen.wrong) == ([], [])


async def test_a_pool_is_scaled_and_the_operator_killed_in_the_middle(fleet: Cluster, url: str) -> None:
    before = _workers(fleet)
    operators = ("-n", SYSTEM_NAMESPACE, "pods", "-l", "app.kubernetes.io/name=disagg")
    async with traffic(url) as seen:
        await _edit(fleet, engine={"dtype": "bfloat16"}, decode={"replicas": 3})
        await _until(fleet, "a new worker has begun", lambda: bool(_workers(fleet) - before))
        fleet.kubectl("delete", *operators, "--grace-period=0", "--force", "--wait=false")
        await _rolled(fleet, prefill=2, decode=3)
        await _edit(fleet, engine={"dtype": "float32"}, decode={"replicas": 2})
        await _rolled(fleet)
        await seen.more()
    assert seen.failures == []
    assert not before & _workers(fleet)


async def test_an_image_that_does_not_exist_is_told_and_rolled_back(fleet: Cluster, url: str) -> None:
    before = _workers(fleet)
    async with traffic(url) as seen:
        rollout = {"autoRollback": True, "progressDeadlineSeconds": 20}
        await _edit(fleet, engine={"image": "disagg.dev/worker:absent"}, rollout=rollout)
        await _until(fleet, "it is told", lambda: "absent" in rig.diagnosis(fleet, NAME))
        await _until(fleet, "it is rolled back", lambda: _told(fleet, "RolledBack"))
        await _until(fleet, "the new workers are gone", lambda: _workers(fleet) == before)
        await seen.more()
        await _edit(fleet, engine={"image": IMAGES[1]}, rollout=None)
        await _rolled(fleet)
    assert seen.failures == []
    assert _workers(fleet) == before


async def test_an_image_that_crashes_is_told_with_its_last_words_and_undone(fleet: Cluster, url: str) -> None:
    before = _workers(fleet)
    async with traffic(url) as seen:
        # The router's image has no worker in it.
        await _edit(fleet, engine={"image": "disagg.dev/router:dev"})
        await _until(fleet, "it is told", lambda: "DISAGG_MEMBERSHIP: Field required" in rig.diagnosis(fleet, NAME))
        disagg = Path(sys.executable).with_name("disagg")
        await asyncio.to_thread(fleet.run, disagg, "rollout", "undo", NAME, "-n", fleet.namespace)
        await _rolled(fleet)
        await seen.more()
    assert seen.failures == []
    assert _workers(fleet) == before


async def test_a_full_cluster_rolls(fleet: Cluster, url: str) -> None:
    before = _workers(fleet)
    with _taken(fleet, free=0):
        async with traffic(url) as seen:
            await _edit(fleet, engine={"dtype": "bfloat16"})
            await _rolled(fleet)
            await seen.more()
    assert seen.failures == []
    assert not before & _workers(fleet)


async def test_the_only_pair_of_a_full_cluster_is_exchanged_while_the_routers_hold(fleet: Cluster, url: str) -> None:
    await _edit(fleet, prefill={"replicas": 1}, decode={"replicas": 1})
    await _rolled(fleet, prefill=1, decode=1)
    before, known = _workers(fleet), await expected(url, rig.MODEL)
    with _taken(fleet, free=0):
        async with traffic(url, known=known, leaves=True) as seen:
            await seen.more()
            await _edit(fleet, model={"uri": f"file:///models/{OTHER}"}, rollout={"maxSurge": 0})
            await _until(fleet, "it is said beforehand", lambda: _told(fleet, "ExchangingPools"))
            async with traffic(url, model=OTHER, concurrency=2, comes=True) as held:
                await _rolled(fleet, prefill=1, decode=1)
                await held.more()
    assert (seen.failures, seen.wrong, held.failures) == ([], [], [])
    assert not {a.weights for a in seen.answers} & {a.weights for a in held.answers}
    assert not before & _workers(fleet)
