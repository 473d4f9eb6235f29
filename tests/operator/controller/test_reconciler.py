"""Reconciling against an API server in memory ends in one fixed point, whatever happens before."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.fakes.kube import FakeKube

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.controller.drift import APPLIED_HASH
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.reconciler import Reconciler
from disagg_operator.desired import Images
from disagg_operator.kube.errors import KubeError
from disagg_operator.status.recorder import Recorder
from disagg_operator.status.workloads import RouterView, WorkerLink

KEY = ("default", "chat")
SPEC: dict[str, Any] = {
    "model": {"uri": "file:///models/stdlib-llama"},
    "prefill": {"replicas": 1},
    "decode": {"replicas": 2},
    "router": {"replicas": 1},
}


def resource(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggDeployment",
        "metadata": {"name": KEY[1], "namespace": KEY[0]},
        "spec": {**copy.deepcopy(SPEC), **spec},
    }


class World:
    """A cluster, an operator, and a clock that stands still."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.kube.put(resource(**spec))
        self.now = "2026-01-01T00:00:00Z"
        self.restart()

    def restart(self) -> None:
        self.live = LiveTable()
        self.reconciler = Reconciler(
            kube=self.kube,
            live=self.live,
            recorder=Recorder(self.kube, lambda: 0.0, lambda: self.now, lambda: f"id{len(self.kube.events)}"),
            metrics=Metrics(),
            images=Images(worker="w:1", router="r:1"),
            wall=lambda: self.now,
            new_cluster_key=lambda: "ab" * 32,
            clock=lambda: 0.0,
        )

    async def run(self) -> float | None:
        return await self.reconciler.run(KEY)

    async def settle(self) -> None:
        for _ in range(5):
            before = len(self.kube.log)
            await self.run()
            if len(self.kube.log) == before:
                return
        pytest.fail(f"no fixed point: {self.kube.log[-10:]}")

    def edit(self, **spec: Any) -> None:
        found = copy.deepcopy(self.kube.find("DisaggDeployment", "chat"))
        found["spec"].update(spec)
        self.kube.put(found)

    def status(self) -> dict[str, Any]:
        return dict(self.kube.find("DisaggDeployment", "chat")["status"])

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status()["conditions"] if c["type"] == kind)

    def replicas(self, role: str) -> tuple[int, int]:
        """Return the replicas of the DisaggPool and of its Deployment."""
        name = f"chat-{role}"
        return (
            self.kube.find("DisaggPool", name)["spec"]["replicas"],
            self.kube.find("Deployment", name)["spec"]["replicas"],
        )

    def decide(self, role: str, current: int, to: int) -> None:
        uid = self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
        entry = self.live.of(KEY, uid)
        entry.decisions[role] = Decision(current, to, "QueueAboveTarget", "QueueDepth", 9.0, 4.0)

    def snapshot(self) -> dict[Any, Any]:
        """Return the cluster without the uids and versions, which differ from run to run."""
        out = {}
        for key, obj in self.kube.objects.items():
            annotations = {k: v for k, v in (obj["metadata"].get("annotations") or {}).items() if k != APPLIED_HASH}
            meta = (obj["metadata"].get("labels"), annotations)
            spec = obj.get("spec")
            out[key] = (meta, spec, obj.get("data"), obj.get("rules"))
        return out


async def test_a_resource_becomes_its_children_under_the_right_owners() -> None:
    world = World()
    await world.settle()
    kube = world.kube
    assert kube.names("Deployment") == ["chat-decode", "chat-prefill", "chat-router"]
    assert kube.names("DisaggPool") == ["chat-decode", "chat-prefill"]
    assert kube.find("Deployment", "chat-decode")["metadata"]["ownerReferences"][0]["kind"] == "DisaggPool"
    owner = kube.find("Deployment", "chat-router")["metadata"]["ownerReferences"][0]
    assert (owner["uid"], owner["controller"]) == (kube.find("DisaggDeployment", "chat")["metadata"]["uid"], True)
    assert world.replicas("decode") == (2, 2)
    assert world.condition("Accepted")["status"] == "True"
    assert world.status()["decode"] == "0/2"


async def test_the_second_run_and_a_restarted_operator_write_nothing() -> None:
    world = World()
    await world.settle()
    writes = world.kube.writes
    await world.run()
    world.restart()
    world.now = "2026-01-02T00:00:00Z"
    await world.run()
    assert world.kube.writes == writes


async def test_killed_at_any_write_the_next_run_ends_in_the_same_state() -> None:
    whole = World()
    await whole.settle()
    for killed_at in range(1, whole.kube.writes + 1):
        world = World()
        world.kube.fail_at_write = killed_at
        with pytest.raises(KubeError):
            await world.settle()
        world.kube.fail_at_write = None
        world.restart()
        await world.settle()
        assert world.snapshot() == whole.snapshot(), f"killed at write {killed_at}"


@pytest.mark.long
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({}, id="none"),
        pytest.param({"engine": {"env": [{"name": "A", "value": "b"}]}}, id="of the pods"),
        pytest.param({"security": {"networkPolicy": False}, "decode": {"replicas": 3}}, id="of what there is"),
    ],
)
async def test_killed_at_any_two_writes_before_and_after_an_edit_the_end_is_the_same(edit: dict[str, Any]) -> None:
    async def killed(world: World, at: int) -> bool:
        """Run until the operator dies at this write, and start another; False when there are fewer
        writes.
        """
        world.kube.fail_at_write = world.kube.writes + at
        try:
            await world.settle()
        except KubeError:
            return True
        finally:
            world.kube.fail_at_write = None
            world.restart()
        return False

    whole = World()
    await whole.settle()
    whole.edit(**edit)
    await whole.settle()
    for first in range(1, whole.kube.writes + 1):
        second, more = 1, True
        while more:
            world = World()
            before = await killed(world, first)
            world.edit(**edit)
            more = await killed(world, second)
            await world.settle()
            assert world.snapshot() == whole.snapshot(), f"killed at write {first} ({before}), and at {second} after it"
            second += 1


async def test_an_edit_reaches_the_children_and_what_is_no_longer_wanted_goes() -> None:
    world = World()
    await world.settle()
    assert world.kube.names("NetworkPolicy")
    world.edit(security={"networkPolicy": False}, engine={"env": [{"name": "A", "value": "b"}]})
    await world.settle()
    assert not world.kube.names("NetworkPolicy")
    template = world.kube.find("Deployment", "chat-prefill")["spec"]["template"]
    assert {"name": "A", "value": "b"} in template["spec"]["containers"][0]["env"]


async def test_drift_is_repaired_and_other_peoples_fields_stay() -> None:
    world = World()
    await world.settle()
    found = copy.deepcopy(world.kube.find("Deployment", "chat-prefill"))
    found["spec"]["template"]["spec"]["containers"][0]["image"] = "evil:1"
    found["metadata"]["annotations"]["example.com/theirs"] = "1"
    world.kube.put(found)
    await world.settle()
    now = world.kube.find("Deployment", "chat-prefill")
    assert now["spec"]["template"]["spec"]["containers"][0]["image"] == "w:1"
    assert now["metadata"]["annotations"]["example.com/theirs"] == "1"


async def test_the_cluster_key_is_made_once_and_never_changed() -> None:
    world = World()
    await world.settle()
    before = copy.deepcopy(world.kube.find("Secret", "chat-cluster-key"))
    world.restart()
    world.edit(engine={"dtype": "float32"})
    await world.settle()
    assert world.kube.find("Secret", "chat-cluster-key") == before


@pytest.mark.parametrize(
    ("spec", "reason", "field"),
    [
        (
            {"prefill": {"replicas": 1, "parallelism": {"tensor": 8}}},
            "UnsupportedParallelism",
            "spec.prefill.parallelism",
        ),
        (
            {"decode": {"accelerator": {"count": 2}, "parallelism": {"tensor": 4}}},
            "UnsupportedParallelism",
            "accelerator.count is 2",
        ),
        ({"prefill": {"replicas": "many"}}, "InvalidSpec", "prefill.replicas"),
        ({"prefill": {"replicas": 0}}, "InvalidSpec", "spec.prefill.replicas"),
        ({"decode": {"kvCacheSize": "lots"}}, "InvalidSpec", "spec.decode.kvCacheSize"),
        (
            {"decode": {"autoscaling": {"maxReplicas": 3, "metrics": [{"target": {"averageValue": "4k"}}]}}},
            "InvalidSpec",
            "averageValue",
        ),
    ],
)
async def test_a_bad_spec_is_refused_by_name_and_what_runs_is_left_alone(
    spec: dict[str, Any], reason: str, field: str
) -> None:
    world = World()
    await world.settle()
    before = world.snapshot()
    world.edit(**spec)
    await world.run()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason)
    assert field in accepted["message"]
    assert world.condition("Ready")["reason"] == reason
    after = world.snapshot()
    resource_key = ("DisaggDeployment", "default", "chat")
    assert {k: v for k, v in after.items() if k != resource_key} == {
        k: v for k, v in before.items() if k != resource_key
    }
    assert [e["reason"] for e in world.kube.events if e["type"] == "Warning"][-1] == "InvalidSpec"


async def test_a_template_that_the_api_server_refuses_is_found_out_before_anything_is_written() -> None:
    world = World()
    await world.settle()
    world.kube.invalid_names.add("chat-decode")
    world.edit(engine={"dtype": "float32"})
    before = world.snapshot()
    await world.run()
    assert world.condition("Accepted")["reason"] == "InvalidSpec"
    assert world.snapshot() == before


async def test_an_object_of_that_name_that_is_not_ours_is_not_taken_over() -> None:
    world = World()
    world.kube.put(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "chat-router", "namespace": "default"},
            "spec": {"x": 1},
        }
    )
    assert await world.run() is not None
    assert world.condition("Accepted")["reason"] == "NameConflict"
    assert world.kube.find("Service", "chat-router")["spec"] == {"x": 1}


async def test_kubectl_scale_is_kept_until_the_spec_itself_changes() -> None:
    world = World()
    await world.settle()
    world.kube.scale("chat-decode", 5)
    await world.settle()
    assert world.replicas("decode") == (5, 5)
    assert world.status()["pools"][1]["replicaOwner"] == "kubectl-scale"
    world.edit(engine={"dtype": "float32"})
    await world.settle()
    assert world.replicas("decode") == (5, 5)
    world.edit(decode={"replicas": 3})
    await world.settle()
    assert world.replicas("decode") == (3, 3)


async def test_a_scale_that_comes_between_reading_and_writing_is_not_lost() -> None:
    world = World()
    await world.settle()
    world.edit(decode={"replicas": 3})

    def race(verb: str, obj: dict[str, Any]) -> None:
        if verb == "apply" and obj["kind"] == "DisaggPool" and obj["metadata"]["name"] == "chat-decode":
            world.kube.on_write = lambda verb, obj: None
            world.kube.scale("chat-decode", 7)

    world.kube.on_write = race
    with pytest.raises(KubeError):
        await world.run()
    assert world.kube.find("DisaggPool", "chat-decode")["spec"]["replicas"] == 7
    await world.settle()
    assert world.replicas("decode") == (3, 3)


async def test_suspend_stops_both_pools_and_resuming_brings_back_what_ran() -> None:
    world = World()
    await world.settle()
    world.kube.scale("chat-decode", 5)
    await world.settle()
    world.edit(suspend=True)
    await world.settle()
    assert world.replicas("decode") == (0, 0)
    assert world.condition("Ready")["reason"] == "Suspended"
    world.edit(suspend=False)
    await world.settle()
    assert world.replicas("decode") == (5, 5)
    assert world.replicas("prefill") == (1, 1)


AUTOSCALED = {"decode": {"autoscaling": {"minReplicas": 1, "maxReplicas": 4}}}


async def test_a_decision_is_carried_out_once_and_told() -> None:
    world = World(**AUTOSCALED)
    await world.settle()
    assert world.replicas("decode") == (1, 1)
    world.decide("decode", 1, 3)
    await world.settle()
    assert world.replicas("decode") == (3, 3)
    scaled = [e for e in world.kube.events if e["reason"] == "ScaledUp"]
    assert [e["message"] for e in scaled] == ["decode: QueueDepth=9 target 4: 1 -> 3 (QueueAboveTarget)"]
    decision = world.status()["pools"][1]["lastDecision"]
    assert (decision["from"], decision["to"], decision["value"], decision["dryRun"]) == (1, 3, 9.0, False)
    assert world.status()["pools"][1]["replicaOwner"] == "autoscaler"


async def test_a_dry_run_computes_and_changes_nothing() -> None:
    world = World(**AUTOSCALED, scaling={"dryRun": True})
    await world.settle()
    world.decide("decode", 1, 3)
    await world.settle()
    assert world.replicas("decode") == (1, 1)
    assert world.status()["pools"][1]["lastDecision"]["dryRun"] is True
    assert not [e for e in world.kube.events if e["reason"] == "ScaledUp"]
    writes = world.kube.writes
    world.now = "2026-01-01T01:00:00Z"
    await world.run()
    assert world.kube.writes == writes


async def test_before_a_pool_shrinks_its_pods_are_priced_by_what_they_hold() -> None:
    world = World(**AUTOSCALED)
    await world.settle()
    world.decide("decode", 1, 3)
    await world.settle()
    labels = world.kube.find("Deployment", "chat-decode")["spec"]["template"]["metadata"]["labels"]
    for name in "abc":
        world.kube.put(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default", "labels": labels}}
        )
    uid = world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
    world.live.of(KEY, uid).loads = {"a": 5.0, "b": 0.0}
    world.decide("decode", 3, 1)
    await world.settle()
    costs = {
        n: world.kube.find("Pod", n)["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"]
        for n in "abc"
    }
    assert costs == {"a": "5", "b": "0", "c": "5"}
    order = [(verb, kind) for verb, kind, name in world.kube.log if kind in ("Pod", "Deployment")]
    assert order.index(("merge", "Pod")) < len(order) - 1 - order[::-1].index(("apply", "Deployment"))


async def test_deleting_the_resource_deletes_all_of_it() -> None:
    world = World()
    await world.settle()
    world.kube.remove("DisaggDeployment", "chat")
    assert world.kube.objects == {}
    assert await world.run() is None
    assert world.kube.objects == {}


async def test_ready_follows_the_pods_and_the_routers_word() -> None:
    world = World()
    await world.settle()
    for name in world.kube.names("Deployment"):
        found = copy.deepcopy(world.kube.find("Deployment", name))
        n = found["spec"]["replicas"]
        found["status"] = {
            "observedGeneration": found["metadata"]["generation"],
            "replicas": n,
            "readyReplicas": n,
            "updatedReplicas": n,
        }
        world.kube.put(found)
    await world.settle()
    assert world.condition("Available")["status"] == "Unknown"
    uid = world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
    world.live.of(KEY, uid).view = RouterView(2, 2, (WorkerLink("p", "prefill", "tcp", "eth0"),))
    await world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.status()["pairs"] == {"expected": 2, "healthy": 2, "transport": {"rdma": 0, "tcp": 1}}
    assert "Ready" in [e["reason"] for e in world.kube.events]
    assert world.kube.find("DisaggPool", "chat-decode")["status"]["readyReplicas"] == 2


async def test_without_multus_the_network_condition_says_so_and_nothing_crashes() -> None:
    network = {"network": {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}}
    world = World(kvTransfer=network)
    world.kube.absent.add("NetworkAttachmentDefinition")
    await world.settle()
    assert world.condition("NetworkReady")["reason"] == "MultusAbsent"
    world.kube.absent.clear()
    await world.settle()
    assert world.condition("NetworkReady")["status"] == "True"
    assert world.kube.names("NetworkAttachmentDefinition") == ["chat-kv"]
