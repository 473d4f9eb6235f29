"""Reconciling against an API server in memory ends in one fixed point, whatever happens before."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.operator.controller.world import KEY, World

from disagg_operator.controller.status_inputs import NETWORK_RETRY_S
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import NETWORK_ATTACHMENT
from disagg_operator.status.kv_links import RouterView, WorkerLink
from disagg_wire.problems import WorkerProblem


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
    world.now = "2026-01-01T01:00:00Z"
    await world.run()
    assert world.kube.writes == writes


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


async def test_a_pool_that_is_scaled_to_0_alone_is_warned_of() -> None:
    world = World()
    await world.settle()
    world.kube.scale("chat-prefill", 0)
    await world.settle()
    warning = world.condition("Warning")
    assert (warning["reason"], warning["message"].partition(":")[0]) == ("OnePoolAtZero", "spec.prefill.replicas")
    world.kube.scale("chat-decode", 0)
    await world.settle()
    assert not [c for c in world.status()["conditions"] if c["type"] == "Warning"]


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
    assert world.status()["pairs"] == {
        "expected": 2,
        "healthy": 2,
        "transport": {"rdma": 0, "nvlink": 0, "shm": 0, "tcp": 1},
        "uses": "tcp",
        "evidence": "Configured",
        "interface": "eth0",
    }
    assert "Ready" in [e["reason"] for e in world.kube.events]
    assert world.kube.find("DisaggPool", "chat-decode")["status"]["readyReplicas"] == 2


async def test_without_multus_nothing_that_needs_it_is_made_and_status_says_so() -> None:
    network = {"network": {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}}
    world = World(kvTransfer=network)
    world.kube.absent.add("NetworkAttachmentDefinition")
    await world.settle()
    assert world.condition("Accepted")["reason"] == "MultusAbsent"
    assert world.kube.names("Deployment") == []
    world.kube.absent.clear()
    await world.settle()
    assert world.condition("NetworkReady")["status"] == "True"
    assert world.kube.names("NetworkAttachmentDefinition") == ["chat-kv"]


async def test_the_operators_own_network_is_made_again_soon_after_it_was_deleted() -> None:
    attachment = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}
    world = World(kvTransfer={"network": {"attachment": attachment}})
    await world.settle()
    own = ("NetworkAttachmentDefinition", "default", "chat-kv")
    made = copy.deepcopy(world.kube.objects[own])
    await world.references.look()

    await world.kube.delete(world.kube.objects[own])
    world.woken.clear()
    await world.references.look()
    assert world.woken == [KEY]
    await world.settle()
    assert world.kube.objects[own]["spec"] == made["spec"]
    await world.references.look()
    world.woken.clear()
    await world.references.look()
    assert world.woken == []
    await world.kube.merge(NETWORK_ATTACHMENT, "default", "chat-kv", {"spec": {"config": "{}"}})
    await world.references.look()
    assert world.woken == [KEY]


async def test_a_network_is_checked_down_to_its_chain_and_to_what_workers_find() -> None:
    device = {"rdmaResource": {"name": "nvidia.com/vf"}}
    world = World(kvTransfer={"network": {"attachmentRef": {"name": "fabric"}, **device}})
    node = {"metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/vf": "1"}}}
    world.kube.objects["Node", "", "n"] = {"apiVersion": "v1", "kind": "Node", **node}

    async def attach(*types: str) -> tuple[str, str, str]:
        world.kube.objects["NetworkAttachmentDefinition", "default", "fabric"] = {
            "apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
            "metadata": {
                "name": "fabric", "namespace": "default",
                "annotations": {"k8s.v1.cni.cncf.io/resourceName": "nvidia.com/vf"},
            },
            "spec": {"config": json.dumps({"plugins": [{"type": t} for t in types]})},
        }  # fmt: skip
        await world.settle()
        found = world.condition("NetworkReady")
        return found["status"], found["reason"], found["message"]

    assert (await attach("sriov"))[:2] == ("False", "RdmaChainMissing")
    words = "1 node for prefill, 1 node for decode (1 nvidia.com/vf)"
    assert await attach("sriov", "rdma") == ("True", "NetworkFound", words)
    uid = world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
    world.live.of(KEY, uid).told = {"chat-decode-0": WorkerProblem("MemlockTooLow", "8 MiB")}
    await world.settle()
    assert world.condition("NetworkReady")["reason"] == "MemlockTooLow"


async def test_a_node_with_the_device_that_comes_late_is_seen_soon() -> None:
    attachment = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}
    network = {"attachment": attachment, "rdmaResource": {"name": "rdma/hca"}}
    world = World(kvTransfer={"transport": "rdma", "fallback": "Warn", "network": network})
    await world.settle()
    assert world.condition("NetworkReady")["reason"] == "RdmaResourceMissing"
    assert await world.run() == NETWORK_RETRY_S
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}, "status": {"allocatable": {"rdma/hca": "1"}}}
    world.kube.objects["Node", "", "n"] = node
    assert await world.run() != NETWORK_RETRY_S
    assert world.condition("NetworkReady")["status"] == "True"
