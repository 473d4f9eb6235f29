"""Canaries, drains, scale to zero and deletion on a real kubelet under load: no request fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.e2e import rig
from tests.e2e.traffic import traffic

from access import router_url
from disagg_wire import series
from kubectl import REPO, Cluster, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900, func_only=True)]
NAME, SLOW = "life", "disagg.dev/worker:slow"
_LIMIT_S = 300.0
_FOLDER = Path(__file__).parent / "images"


@pytest.fixture(scope="module")
def life(cluster: Cluster) -> Cluster:
    """Return the cluster with two workers in each pool, and two routers."""
    cluster.run(
        REPO / "e2e/cluster", "image", "--file", _FOLDER / "slow.Dockerfile", "--context", _FOLDER,
        "--tag", SLOW, "--build-arg", "BASE=disagg.dev/worker:dev", timeout_s=600,
    )  # fmt: skip
    two = {"replicas": 2, "drain": {"timeoutSeconds": 60}}
    obj = rig.resource(NAME, "192.168.87.0/24", prefill=two, decode=two, router={"replicas": 2})
    obj["spec"]["engine"] = {"dtype": "float32"}
    rig.apply(cluster, obj)
    rig.wait_ready(cluster, NAME, prefill=2, decode=2)
    return cluster


@pytest.fixture(scope="module")
def url(life: Cluster) -> Iterator[str]:
    with router_url(life, f"{NAME}-router") as found:
        yield found


def _workers(cluster: Cluster) -> dict[str, str]:
    """Return the uids of the workers that are not terminating, by name."""
    found = {**rig.pods(cluster, NAME, "prefill"), **rig.pods(cluster, NAME, "decode")}
    return {k: p["metadata"]["uid"] for k, p in found.items() if "deletionTimestamp" not in p["metadata"]}


def _told(cluster: Cluster, condition: str, reason: str) -> bool:
    resource = cluster.get("dd", NAME)
    seen = conditions(resource).get(condition, {})
    return bool(seen.get("reason") == reason and seen["observedGeneration"] == resource["metadata"]["generation"])


async def _until(cluster: Cluster, what: str, done: Callable[[], bool]) -> None:
    await asyncio.to_thread(cluster.wait, what, done, _LIMIT_S, detail=lambda: rig.diagnosis(cluster, NAME))


async def _edit(cluster: Cluster, **spec: Any) -> None:
    await asyncio.to_thread(lambda: rig.edit(cluster, NAME, **spec))


async def test_a_canary_gets_its_weight_and_is_promoted(life: Cluster, url: str) -> None:
    old = _workers(life)
    canary = {"weight": 10, "minRequests": 30, "analysis": {"ttftSeconds": {"p99": 30}, "tpotSeconds": {"p99": 5}}}
    async with traffic(url) as seen:
        await _edit(life, engine={"threads": 2}, rollout={"canary": canary})
        await _until(life, "the canary has begun", lambda: _told(life, "Progressing", "Canary"))
        since = len(seen.answers)
        await _until(life, "the canary has ended", lambda: not _told(life, "Progressing", "Canary"))
        during = seen.answers[since:]
        await _until(life, "it is promoted", lambda: _told(life, "Progressing", "RolloutComplete"))
    assert seen.failures == []
    assert not set(old.values()) & set(_workers(life).values())
    new = sum(a.pod("decode") not in old for a in during)
    assert 0 < new <= 0.2 * len(during)  # one ready pair of three would get a third


async def test_a_canary_that_is_worse_goes_back_and_no_serving_worker_goes(life: Cluster, url: str) -> None:
    before = _workers(life)
    canary = {"weight": 25, "minRequests": 10, "analysis": {"ttftSeconds": {"p99": 30}, "tpotSeconds": {"p99": 0.08}}}
    async with traffic(url) as seen:
        await _edit(life, engine={"image": SLOW}, rollout={"canary": canary})
        await _until(life, "it has failed", lambda: _told(life, "Progressing", "CanaryFailed"))
        await _until(life, "the new workers are gone", lambda: _workers(life) == before)
        await seen.more()
        await _edit(life, engine={"image": None}, rollout=None)
        await _until(life, "all is as it was", lambda: _told(life, "Progressing", "RolloutComplete"))
    assert seen.failures == []
    assert _workers(life) == before


async def _active(http: httpx.AsyncClient, router: str) -> int:
    """Return how many requests a router has taken that are not answered yet."""
    lines = (await http.get(f"{router}/metrics")).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith(f"{series.ROUTER_RUNNING_REQUESTS} ")))


@contextlib.asynccontextmanager
async def _long_answers(life: Cluster, url: str) -> AsyncIterator[None]:
    """Run the block while the routers work on 24 long answers, which must all be whole."""
    body = {"model": rig.MODEL, "prompt": "x" * 40, "max_tokens": 400, "ignore_eos": True}
    async with httpx.AsyncClient(trust_env=False, timeout=120.0) as http:
        asked = [asyncio.create_task(http.post(f"{url}/v1/completions", json=body)) for _ in range(24)]
        addresses = [p["status"].get("podIP") for p in rig.pods(life, NAME, "router").values()]
        routers = [f"http://{ip}:8080" for ip in addresses if ip]  # one that has just begun has taken nothing
        async with asyncio.timeout(60):
            while sum([await _active(http, router) for router in routers]) < len(asked):
                await asyncio.sleep(0.05)
        yield
        answers = await asyncio.gather(*asked)
    assert {a.status_code for a in answers} == {200}
    assert {a.json()["usage"]["completion_tokens"] for a in answers} == {400}


async def test_workers_that_leave_finish_first_and_are_called_back(life: Cluster, url: str) -> None:
    async with traffic(url, concurrency=6) as seen:
        life.kubectl("scale", f"dp/{NAME}-decode", "--replicas=3")
        await rig.until_ready(life, NAME, prefill=2, decode=3)
        three = _workers(life)
        async with _long_answers(life, url):  # Each worker has some, so none has left before it is called back.
            life.kubectl("scale", f"dp/{NAME}-decode", "--replicas=1")
            life.kubectl("scale", f"dp/{NAME}-decode", "--replicas=3")
        await seen.more()
        await rig.until_ready(life, NAME, prefill=2, decode=3)
        back = _workers(life)
        life.kubectl("scale", f"dp/{NAME}-decode", "--replicas=2")
        await rig.until_ready(life, NAME, prefill=2, decode=2)
        await seen.more()
    assert seen.failures == []
    assert back == three
    assert set(_workers(life).values()) < set(three.values())


async def test_at_zero_a_request_waits_and_wakes_both_pools(life: Cluster, url: str) -> None:
    await _edit(life, scaling={"scaleToZero": {"idleSeconds": 5}})
    await _until(life, "it is at zero", lambda: not _workers(life) and _told(life, "Ready", "ScaledToZero"))
    async with httpx.AsyncClient(trust_env=False) as http:
        listed = (await http.get(f"{url}/v1/models")).json()["data"]
    assert [m["id"] for m in listed] == [rig.MODEL]
    async with traffic(url) as seen:
        await seen.more(4)
        await rig.until_ready(life, NAME, prefill=2, decode=2)
    assert seen.failures == []
    assert life.kubectl("get", "events", "--field-selector", "reason=Woken").count(f"/{NAME}") == 1
    await _edit(life, scaling=None)


async def test_a_deployment_that_is_deleted_answers_what_it_has_taken(life: Cluster, url: str) -> None:
    """Requests that cannot connect any more were not taken."""
    async with _long_answers(life, url):
        life.kubectl("delete", "dd", NAME, "--wait=false")
    await _until(life, "the pods are gone", lambda: not life.items("pods", f"disagg.dev/deployment={NAME}"))
