"""Tests of the reconciler: both pools go to zero and come back in one run, and status says why."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.world import KEY, World

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.idling import IdleWatch
from disagg_operator.kube.errors import KubeError
from disagg_operator.status.kv_links import RouterView

ZERO = {"scaling": {"scaleToZero": {"idleSeconds": 60}}}


class Sleeper(World):
    """A deployment whose pods are as its Deployments want them."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**{**ZERO, **spec})

    @property
    def entry(self) -> Live:
        return self.live.of(KEY, self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"])

    def deployments_follow(self) -> None:
        for name in ("chat-prefill", "chat-decode", "chat-router"):
            found = self.kube.find("Deployment", name)
            n = found["spec"]["replicas"]
            counts = {"replicas": n, "readyReplicas": n, "updatedReplicas": n}
            found["status"] = {"observedGeneration": found["metadata"].get("generation", 0), **counts}
            self.kube.put(found)

    async def serving(self) -> None:
        """Bring it to where its pods are ready and its pairs move KV."""
        for _ in range(3):
            await self.settle()
            self.deployments_follow()
            self.entry.view = RouterView(expected=2, healthy=2)
        await self.settle()

    def idle(self, seconds: float = 100.0) -> None:
        self.entry.idle = IdleWatch(frozenset("r"), 0.0, seconds, self.clock_s)

    async def asleep(self) -> None:
        await self.serving()
        self.idle()
        await self.run()
        self.entry.view = RouterView(expected=0, healthy=0)
        self.deployments_follow()
        await self.settle()

    @property
    def sizes(self) -> tuple[int, int]:
        return self.replicas("prefill")[1], self.replicas("decode")[1]


async def test_both_pools_go_in_one_run_and_come_back_in_one() -> None:
    world = Sleeper()
    await world.serving()
    assert (world.sizes, world.condition("Ready")["reason"]) == ((1, 2), "Ready")
    world.idle(59)
    await world.run()
    assert world.sizes == (1, 2)
    world.idle(60)
    await world.run()
    assert world.replicas("prefill") == world.replicas("decode") == (0, 0)
    assert world.kube.find("Deployment", "chat-router")["spec"]["replicas"] == 1
    world.entry.view = RouterView(expected=0, healthy=0)
    world.deployments_follow()
    await world.settle()
    assert {k: (c["status"], c["reason"]) for c in world.status()["conditions"] if (k := c["type"]) in WANTED} == WANTED
    assert [(p["replicaOwner"], p["desired"]) for p in world.status()["pools"]] == [("scaleToZero", 0)] * 2
    world.entry.wake = True
    await world.run()
    assert (world.sizes, world.entry.wake) == ((1, 2), False)
    assert world.condition("Available")["status"] == "False"
    world.clock_s = 40.0
    world.deployments_follow()
    world.entry.view = RouterView(expected=2, healthy=2)
    await world.settle()
    assert world.condition("Ready")["reason"] == "Ready"
    assert [e["reason"] for e in world.kube.events if e["reason"] in ("ScaledToZero", "Woken")] == [
        "ScaledToZero",
        "Woken",
    ]
    page = world.metrics.text().decode()
    labels = '{disagg_deployment="chat",namespace="default"}'
    for line in (f"disagg_operator_zeros_total{labels} 1.0", f"disagg_operator_wakes_total{labels} 1.0"):
        assert line in page
    assert "disagg_operator_wake_seconds_sum 40.0" in page


WANTED = {
    "Ready": ("True", "ScaledToZero"),
    "Available": ("True", "ScaledToZero"),
    "PrefillReady": ("True", "ScaledToZero"),
    "DecodeReady": ("True", "ScaledToZero"),
    "KVTransferReady": ("Unknown", "ScaledToZero"),
    "ScaledToZero": ("True", "Idle"),
    "Progressing": ("True", "RolloutComplete"),
    "Degraded": ("False", "AsSpecified"),
}


async def test_at_zero_routers_must_be_there_and_answer() -> None:
    world = Sleeper()
    await world.asleep()
    world.entry.view = None
    await world.settle()
    assert world.condition("Available")["status"] == "Unknown"
    assert world.condition("Ready")["status"] == "False"


async def _dry(world: Sleeper) -> None:
    world.edit(scaling={**ZERO["scaling"], "dryRun": True})
    await world.settle()


async def _suspended(world: Sleeper) -> None:
    world.edit(suspend=True)
    await world.settle()


async def _rolls(world: Sleeper) -> None:
    world.edit(engine={"dtype": "float32"})
    await world.run()


async def _asked(world: Sleeper) -> None:
    world.entry.wake = True


async def _due(world: Sleeper) -> None:
    world.entry.due = True


async def _forbidden(world: Sleeper) -> None:
    world.edit(scaling={})
    await world.settle()


async def _old(world: Sleeper) -> None:
    world.clock_s += 20


@pytest.mark.parametrize(
    ("first", "sizes"),
    [(_dry, (1, 2)), (_suspended, (0, 0)), (_rolls, (1, 2)), (_asked, (1, 2)), (_due, (1, 2)), (_forbidden, (1, 2))],
)
async def test_nobody_goes_to_zero(first: Any, sizes: tuple[int, int]) -> None:
    world = Sleeper()
    await world.serving()
    await first(world)
    world.idle()
    await world.run()
    assert world.sizes == sizes
    assert not any(c["type"] == "ScaledToZero" for c in world.status()["conditions"])


async def test_nor_by_what_was_seen_too_long_ago() -> None:
    world = Sleeper()
    await world.serving()
    world.idle()
    await _old(world)
    await world.run()
    assert world.sizes == (1, 2)


async def test_the_idle_write_nothing_at_zero_and_a_new_operator_wakes_nobody() -> None:
    world = Sleeper()
    await world.asleep()
    before = len(world.kube.log)
    world.restart()
    world.entry.view = RouterView(expected=0, healthy=0)
    await world.settle()
    assert (len(world.kube.log), world.sizes) == (before, (0, 0))


@pytest.mark.parametrize(
    ("edit", "sizes"),
    [
        pytest.param({"decode": {"replicas": 5}}, (0, 0), id="another size is for the next time"),
        pytest.param({"engine": {"dtype": "float32"}}, (0, 0), id="other pods as well"),
        pytest.param({"scaling": {}}, (1, 2), id="without the field both come back"),
        pytest.param({"suspend": True}, (0, 0), id="a suspension stays at zero"),
    ],
)
async def test_edits_at_zero(edit: dict[str, Any], sizes: tuple[int, int]) -> None:
    world = Sleeper()
    await world.asleep()
    world.edit(**edit)
    await world.settle()
    assert world.sizes == sizes


async def test_other_pods_that_were_declared_at_zero_are_those_that_wake() -> None:
    world = Sleeper()
    await world.asleep()
    world.edit(engine={"dtype": "float32"}, decode={"replicas": 5})
    await world.settle()
    world.entry.wake = True
    await world.settle()
    found = [
        o for k, o in world.kube.objects.items() if k[0] == "Deployment" and "pool" in str(o["metadata"]["labels"])
    ]
    assert sorted(o["spec"]["replicas"] for o in found) == [1, 5]
    assert all('"float32"' in str(o).replace("'", '"') for o in found)


async def test_routers_that_cannot_tell_are_told_of() -> None:
    world = Sleeper()
    await world.serving()
    world.entry.idle = IdleWatch(too_old=True)
    await world.settle()
    assert world.condition("Warning")["reason"] == "RoutersTooOld"
    world.edit(scaling={})
    await world.settle()
    assert not any(c["type"] == "Warning" for c in world.status()["conditions"])


async def scale(world: World, role: str, replicas: int) -> None:
    found = world.kube.find("DisaggPool", f"chat-{role}")
    found["spec"]["replicas"] = replicas
    fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    found["metadata"]["managedFields"] = [{"manager": "kubectl", "time": "2026-01-02T00:00:00Z", "fieldsV1": fields}]
    world.kube.put(found)
    await world.settle()


async def test_a_pool_that_is_scaled_to_zero_alone_keeps_a_worker_until_the_other_follows() -> None:
    world = World()
    await world.settle()
    await scale(world, "decode", 0)
    assert (world.replicas("prefill"), world.replicas("decode")) == ((1, 1), (0, 1))
    warning = world.condition("Warning")
    assert (warning["reason"], "spec.decode.replicas" in warning["message"]) == ("OnePoolAtZero", True)
    assert {p["name"]: p["replicaOwner"] for p in world.status()["pools"]}["decode"] == "kubectl"
    await scale(world, "prefill", 0)
    assert (world.replicas("prefill"), world.replicas("decode")) == ((0, 0), (0, 0))
    assert not any(c["type"] == "Warning" for c in world.status()["conditions"])
    await scale(world, "decode", 3)
    assert (world.replicas("prefill"), world.replicas("decode")) == ((0, 1), (3, 3))


async def test_one_scale_wakes_both_from_zero() -> None:
    world = Sleeper()
    await world.asleep()
    await scale(world, "decode", 4)
    assert (world.replicas("prefill"), world.replicas("decode")) == ((1, 1), (4, 4))


@pytest.mark.parametrize("wakes", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_killed_at_any_write_both_pools_serve_or_neither(wakes: bool) -> None:
    async def begun() -> Sleeper:
        world = Sleeper()
        await (world.asleep() if wakes else world.serving())
        return world

    def order(world: Sleeper) -> None:
        world.entry.wake = wakes
        if not wakes:
            world.idle()

    whole = await begun()
    before = whole.kube.writes
    order(whole)
    await whole.run()
    for killed_at in range(before + 1, whole.kube.writes + 1):
        world = await begun()
        order(world)
        world.kube.fail_at_write = killed_at
        with pytest.raises(KubeError):
            await world.run()
        world.kube.fail_at_write = None
        world.restart()
        await world.settle()
        assert world.sizes in ((0, 0), (1, 2)), f"killed at write {killed_at}"
        assert world.replicas("prefill")[0] == world.sizes[0]
