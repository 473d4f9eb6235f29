"""The autoscaler loop: one resource must not affect the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.kube import FakeKube

from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.autoscaling.loop import AutoscalerLoop
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.role_changer import RoleChanger
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.collector import Collector
from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.acceptance import scale_plan
from disagg_operator.controller.metrics import Metrics
from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, Resource
from disagg_operator.vocabulary import Obj

SCALED = {"autoscaling": {"minReplicas": 1, "maxReplicas": 4}}


class Broken(StateKeeper):
    """A StateKeeper with a bug that only the resource `bad` meets."""

    async def ready(self, key: Any, entry: Any, plan: Any) -> bool:
        if key[1] == "bad":
            raise ZeroDivisionError("as told")
        return await super().ready(key, entry, plan)


class SlowKube(FakeKube):
    """An API server that answers while `answering` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.answering, self.asked = asyncio.Event(), asyncio.Event()
        self.answering.set()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        self.asked.set()
        await self.answering.wait()
        return await super().get(resource, namespace, name)


class Loop:
    def __init__(self, folder: Path, timeout_s: float = 2.0) -> None:
        self.now_s, self.woken = 1000.0, set[Any]()
        self.cache, self.live, self.metrics = Cache(), LiveTable(), Metrics()
        self.direct = DirectDoor(timeout_s=timeout_s, sweep_timeout_s=5 * timeout_s)
        self.kube = SlowKube()
        self.prometheus = PrometheusSource(self.kube, PrometheusDoor(), lambda: self.now_s)
        self.role_changer = RoleChanger(self.direct, self.woken.add, lambda: self.now_s)
        states = Broken(StateStore(FakeKube()), self.prometheus, lambda: self.now_s)
        self.loop = AutoscalerLoop(
            cache=self.cache,
            live=self.live,
            collector=Collector(self.direct, self.prometheus, lambda: self.now_s),
            states=states,
            decision_log=DecisionLog(folder),
            role_changer=self.role_changer,
            plan_of=scale_plan,
            bearer_of=self.bearer_of,
            wake=self.woken.add,
            clock=lambda: self.now_s,
            metrics=self.metrics.scaling,
        )

    async def bearer_of(self, key: Any) -> str | None:
        return None

    def add(self, name: str, **more: Any) -> None:
        meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}"}
        spec = {"model": {"uri": "hf://a/b"}, "prefill": SCALED, "decode": SCALED, **more}
        self.cache.put(
            DISAGG_DEPLOYMENT,
            {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "metadata": meta, "spec": spec},
        )
        for role in ("prefill", "decode"):
            owned = {
                "name": f"{name}-{role}",
                "namespace": "ns",
                "labels": {"disagg.dev/deployment": name, "disagg.dev/pool": role},
            }
            self.cache.put(
                DISAGG_POOL,
                {"kind": "DisaggPool", "metadata": {**owned, "uid": f"{name}{role}"}, "spec": {"replicas": 2}},
            )

    async def close(self) -> None:
        await self.role_changer.close()
        await self.direct.close()
        await self.prometheus.close()


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Loop]:
    made = Loop(tmp_path)
    yield made
    await made.close()


async def test_a_bug_that_one_resource_meets_costs_no_other_its_decisions(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bad", "good"):
        loop.add(name)
    for _ in range(3):
        await loop.loop.tick()
        loop.now_s += 20
    assert loop.live.of(("ns", "good"), "uid-good").decisions["decode"] is not None
    assert not loop.live.of(("ns", "bad"), "uid-bad").decisions
    assert "ns/bad: no decision" in caplog.text
    assert b'disagg_autoscaler_failures_total{disagg_deployment="bad",namespace="ns"} 3.0' in loop.metrics.text()


async def test_a_resource_of_which_nothing_exists_costs_a_tick_nothing(loop: Loop) -> None:
    """A thousand that were just created would hold up all edits: a plan takes milliseconds."""
    asked: list[str] = []

    def plan_of(resource: Any) -> Any:
        asked.append(resource["metadata"]["name"])
        return scale_plan(resource)

    loop.loop._plan_of = plan_of
    for name in ("new", "old"):
        loop.add(name)
    for role in ("prefill", "decode"):
        loop.cache.drop(DISAGG_POOL, loop.cache.get(DISAGG_POOL, ("ns", f"new-{role}")) or {})
    await loop.loop.tick()
    assert asked == ["old"]


def test_a_plan_is_read_once_for_each_spec_until_one_is_served(loop: Loop) -> None:
    loop.add("chat")
    plan = scale_plan(loop.cache.get(DISAGG_DEPLOYMENT, ("ns", "chat")) or {})
    entry, read = Live("u"), list[int]()

    def reading(generation: int) -> ScalePlan | None:
        read.append(generation)
        return None if generation == 2 else plan

    found = [entry.plan_from(number, partial(reading, number)) for number in (1, 1, 2, 2, 3)]
    assert found == [plan, plan, None, None, plan]
    entry.plan = plan
    assert entry.plan_from(4, partial(reading, 4)) is plan
    assert read == [1, 2, 3]


WATCHED = {
    "observability": {"prometheus": {"url": "https://127.0.0.1:9", "authorization": {"credentials": {"name": "prom"}}}}
}


async def test_what_is_known_of_a_prometheus_stands_until_more_is(loop: Loop) -> None:
    """A reconcile may run at any moment of a tick.

    It must not report that all is well because the tick is not over.
    """
    loop.add("chat", **WATCHED)
    entry = loop.live.of(("ns", "chat"), "uid-chat")
    await loop.loop.tick()
    missing = (
        "CredentialsUnavailable",
        "spec.observability.prometheus.authorization.credentials: Secret prom does not exist",
    )
    assert entry.trouble == missing
    assert loop.woken == {("ns", "chat")}
    loop.kube.answering.clear()
    loop.kube.asked.clear()
    look = asyncio.create_task(loop.loop.tick())
    await asyncio.wait_for(loop.kube.asked.wait(), 30)
    assert entry.trouble == missing
    loop.kube.answering.set()
    await asyncio.wait_for(look, 30)
    assert entry.trouble == missing


async def test_a_deployment_at_zero_is_not_decided_about(loop: Loop) -> None:
    """The bounds of its pools hold again once it wakes."""
    loop.add("chat", scaling={"policy": "queue", "scaleToZero": {}})
    await loop.loop.tick()
    assert set(loop.live.of(("ns", "chat"), "uid-chat").decisions) == {"prefill", "decode"}
    for role in ("prefill", "decode"):
        meta = {"name": f"chat-{role}", "namespace": "ns", "annotations": {DECLARED_ANNOTATION: "zero:-:1"}}
        loop.cache.put(DISAGG_POOL, {"kind": "DisaggPool", "metadata": meta, "spec": {"replicas": 0}})
    loop.woken.clear()
    await loop.loop.tick()
    assert (loop.live.of(("ns", "chat"), "uid-chat").decisions, loop.woken) == ({}, set())
    assert (
        b'disagg_autoscaler_replicas{disagg_deployment="chat",namespace="ns",pool="decode"} 0.0' in loop.metrics.text()
    )
