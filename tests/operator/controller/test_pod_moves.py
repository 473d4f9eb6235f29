"""A pod moves between two ReplicaSets: once, and in an order that deletes no serving worker."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
from tests.operator.controller.world import KEY, World

from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.controller import pod_moves
from disagg_operator.kube.errors import Retry
from disagg_operator.vocabulary import Obj

BOUNDS = {"autoscaling": {"minReplicas": 1, "maxReplicas": 3}}


def pod(name: str, role: str) -> Obj:
    labels = {"disagg.dev/deployment": "chat", "disagg.dev/pool": role, "app.kubernetes.io/component": role}
    owner = {"kind": "ReplicaSet", "uid": f"rs-{role}", "controller": True}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": labels, "ownerReferences": [owner]},
        "status": {},
    }  # fmt: skip


class Moving(World):
    """Two prefill workers and a decode worker; one of the former has become a decode worker."""

    async def begin(self) -> None:
        await self.settle()
        for role, n in (("prefill", 2), ("decode", 1)):
            pool = copy.deepcopy(self.kube.find("DisaggPool", f"chat-{role}"))
            pool["spec"]["replicas"] = n
            self.kube.put(pool)
        await self.settle()
        for name, role in (("p-1", "prefill"), ("p-2", "prefill"), ("d-1", "decode")):
            self.kube.put(pod(name, role))
        uid = self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
        self.live.of(KEY, uid).flip = Flip("p-1", "prefill", "decode", 0.0, changed=True)
        self.kube.log.clear()

    def flip(self) -> Flip | None:
        return self.live.of(KEY, self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]).flip

    async def controllers(self) -> None:
        """Do the work of the Deployment and ReplicaSet controllers, each with a short delay."""
        for _ in range(200):
            await asyncio.sleep(0.02)
            deployment = self.kube.find("Deployment", "chat-decode")
            labels = {**deployment["spec"]["template"]["metadata"]["labels"], "pod-template-hash": "abc"}
            owner = {"kind": "Deployment", "uid": deployment["metadata"]["uid"], "controller": True}
            meta = {
                "name": "chat-decode-abc",
                "namespace": "default",
                "uid": "rs-decode",
                "labels": labels,
                "ownerReferences": [owner],
            }
            spec = {"replicas": deployment["spec"]["replicas"]}
            self.kube.put({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": meta, "spec": spec})
            moved = copy.deepcopy(self.kube.find("Pod", "p-1"))
            if moved["metadata"]["labels"].get("pod-template-hash") == "abc":
                moved["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "uid": "rs-decode", "controller": True}]
                self.kube.put(moved)


@pytest.fixture
async def moving() -> Any:
    world = Moving(prefill=BOUNDS, decode=BOUNDS)
    await world.begin()
    return world


async def test_the_taker_grows_then_the_labels_change_then_the_giver_shrinks(moving: Moving) -> None:
    play = asyncio.create_task(moving.controllers())
    try:
        await moving.run()
    finally:
        play.cancel()
    assert moving.replicas("prefill") == (1, 1)
    assert moving.replicas("decode") == (2, 2)
    labels = moving.kube.find("Pod", "p-1")["metadata"]["labels"]
    assert (labels["disagg.dev/pool"], labels["app.kubernetes.io/component"]) == ("decode", "decode")
    assert moving.flip() is None
    told = [e for e in moving.kube.events if e["reason"] == "RoleFlipped"]
    assert "p-1 went from prefill to decode" in told[0]["message"]
    writes = [str(entry) for entry in moving.kube.log]
    grown = next(i for i, w in enumerate(writes) if "Deployment" in w and "chat-decode" in w)
    relabelled = next(i for i, w in enumerate(writes) if "p-1" in w)
    shrunk = next(i for i, w in enumerate(writes) if "Deployment" in w and "chat-prefill" in w)
    assert grown < relabelled < shrunk


async def test_a_run_that_died_in_between_is_made_again_and_moves_one_pod(
    moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first no controller answers.

    The numbers must not grow with every attempt, and the giving pool must not shrink.
    """
    monkeypatch.setattr(pod_moves, "_LOOKS", 2)
    for _ in range(3):
        with pytest.raises(Retry):
            await moving.run()
    assert moving.replicas("decode") == (2, 2)
    assert moving.replicas("prefill") == (2, 2)
    monkeypatch.setattr(pod_moves, "_LOOKS", 80)
    play = asyncio.create_task(moving.controllers())
    try:
        await moving.run()
    finally:
        play.cancel()
    assert (moving.replicas("prefill"), moving.replicas("decode")) == ((1, 1), (2, 2))


async def test_a_pod_that_died_meanwhile_moves_nothing_but_the_numbers(moving: Moving) -> None:
    moving.kube.objects = {k: v for k, v in moving.kube.objects.items() if v["metadata"]["name"] != "p-1"}
    await moving.run()
    assert moving.flip() is None
    assert (moving.replicas("prefill"), moving.replicas("decode")) == ((1, 1), (2, 2))
