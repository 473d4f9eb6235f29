"""A role flip under load: a worker changes its pool with its weights, and no request fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e import rig
from tests.e2e.replay import SPEED, Replay, halves, sizes

from access import router_url
from kubectl import Cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]
NAME = "flip"
BOUNDS = {"minReplicas": 1, "maxReplicas": 2}
# Loading weights of a realistic size takes minutes. The weights here take no time, so every start
# waits instead.
SLOW_START = {
    "spec": {
        "initContainers": [
            {
                "name": "as-if-large",
                "image": "disagg.dev/worker:dev",
                "command": ["python3", "-c", "import time; time.sleep(8)"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ]
    }
}


@pytest.fixture(scope="module")
def flip(cluster: Cluster) -> Cluster:
    """Return the cluster with three GPUs for both pools: one pool gets what the other gives."""
    obj = rig.resource(NAME, "192.168.82.0/24")
    pool = {"autoscaling": BOUNDS, "accelerator": {"count": 1}, "resources": rig.SMALL, "podTemplate": SLOW_START}
    obj["spec"] |= {
        "prefill": pool,
        "decode": pool,
        "scaling": {"overProvisioning": 3, "profile": SPEED, "maxGPUs": 3, "roleFlip": True},
        "objectives": {"ttftSeconds": {"p99": 2}, "tpotSeconds": {"p99": 0.06}},
    }
    rig.apply(cluster, obj)
    rig.wait_ready(cluster, NAME, prefill=1, decode=1)
    return cluster


@pytest.fixture(scope="module")
def url(flip: Cluster) -> Iterator[str]:
    with router_url(flip, f"{NAME}-router") as found:
        yield found


def _containers(pods: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return the container id of each pod; a new id means that the weights were loaded again."""
    found = {name: p["status"].get("containerStatuses", [{}])[0].get("containerID", "") for name, p in pods.items()}
    return {name: container for name, container in found.items() if container}


def test_a_prefill_worker_becomes_a_decode_worker_while_requests_run(flip: Cluster, url: str) -> None:
    replay, (prompts, answers) = Replay(), halves()
    grown = lambda: sizes(flip, NAME) == {"prefill": 2, "decode": 1} and len(rig.serving(flip, NAME, "prefill")) == 2  # noqa: E731
    assert asyncio.run(replay.until(url, prompts, grown)), f"{sizes(flip, NAME)}\n{rig.diagnosis(flip, NAME)}"
    before = _containers(rig.pods(flip, NAME, "prefill"))

    def moved() -> bool:
        return sizes(flip, NAME) == {"prefill": 1, "decode": 2} and bool(
            before.keys() & rig.serving(flip, NAME, "decode")
        )

    assert asyncio.run(replay.until(url, answers, moved)), f"{sizes(flip, NAME)}\n{rig.diagnosis(flip, NAME)}"
    # The load has ended: without this the decode pool would soon give the worker back.
    flip.kubectl(
        "patch", "dd", NAME, "--type", "merge", "-p", '{"spec": {"decode": {"autoscaling": {"minReplicas": 2}}}}'
    )
    assert replay.errors == []
    rig.wait_ready(flip, NAME, prefill=1, decode=2)
    pods = rig.pods(flip, NAME, "decode")
    after = _containers(pods)
    (pod,) = before.keys() & after.keys()
    assert after[pod] == before[pod]
    found = pods[pod]
    assert found["metadata"]["labels"]["disagg.dev/pool"] == "decode"
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0

    def told() -> bool:
        messages = [e["message"] for e in flip.items("events") if e.get("reason") == "RoleFlipped"]
        return any(f"worker {pod} went from prefill to decode" in m for m in messages)

    flip.wait("an Event tells of it", told, 30.0)


def test_a_container_that_begins_anew_is_asked_back_to_its_pools_role(flip: Cluster, url: str) -> None:
    """The role is not in any file, so a container starts with the original role of its pod."""
    (pod,) = [n for n in rig.serving(flip, NAME, "decode") if n.startswith(f"{NAME}-prefill-")]
    flip.kubectl("exec", pod, "--", "python3", "-c", "import os, signal; os.kill(1, signal.SIGTERM)")

    def back() -> bool:
        status = rig.pods(flip, NAME, "decode")[pod]["status"]["containerStatuses"][0]
        text = flip.kubectl(
            "get", "--raw", f"/api/v1/namespaces/{flip.namespace}/pods/{pod}:8000/proxy/metrics", check=False
        )
        return bool(status["restartCount"] == 1 and status["ready"] and 'role="decode"' in text)

    flip.wait("the worker has its pool's role again", back, 90.0, detail=lambda: rig.diagnosis(flip, NAME))

    async def one() -> rig.Answer:
        async with rig.api(url) as client:
            return await rig.stream(client, [5, 6, 7], 20)

    assert len(asyncio.run(one()).tokens) == 20
