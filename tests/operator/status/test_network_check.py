"""Tests of the condition NetworkReady."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.status.test_conditions import INTENT, seen

from disagg_operator.status.conditions import conditions
from disagg_operator.status.kv_links import RouterView, WorkerLink
from disagg_operator.status.network_check import Findings, PoolNeeds, needs_of, network_check
from disagg_operator.status.workloads import NetworkCheck
from disagg_wire.problems import WorkerProblem

VF, GPU = "nvidia.com/vf", "nvidia.com/gpu"
WHERE = ("nets", "fabric")


def template(count: int = 1, **requests: str) -> dict[str, Any]:
    networks = [{"name": "fabric", "namespace": "nets", "interface": f"net{n + 1}"} for n in range(count)]
    return {
        "metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": json.dumps(networks)}} if count else {},
        "spec": {"containers": [{"resources": {"requests": requests}}]},
    }


def needs(count: int = 1, **requests: str) -> PoolNeeds:
    return needs_of(template(count, **requests), "default", frozenset({VF}))


def nad(*types: str) -> dict[str, Any]:
    annotations = {"k8s.v1.cni.cncf.io/resourceName": VF}
    config = json.dumps({"plugins": [{"type": t} for t in types]})
    return {"metadata": {"name": "fabric", "annotations": annotations}, "spec": {"config": config}}


def node(name: str, vfs: int, gpus: int, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec, "status": {"allocatable": {VF: str(vfs), GPU: str(gpus)}}}


WORKER = needs(2, **{VF: "2", GPU: "2"})
GOOD = Findings(
    namespace="default",
    pools={"prefill": WORKER, "decode": WORKER},
    multus=True,
    nads={WHERE: nad("sriov", "rdma")},
    nodes=[node("a", 8, 8), node("b", 2, 2), node("c", 8, 1)],
    declared="rdma",
)
PLAIN = replace(GOOD, pools=dict.fromkeys(("prefill", "decode"), needs()), declared="tcp")
MEMLOCK = WorkerProblem("MemlockTooLow", "memory of 8 MiB may be locked")
NO_DEVICE = WorkerProblem("NoUverbsDevice", "no RDMA device can be used")


def view(*workers: WorkerLink, evidence: str = "Configured") -> RouterView:
    return RouterView(1, 1, tuple(replace(w, evidence=evidence) for w in workers))


P = WorkerLink("p", "prefill", "rdma", "mlx5_0:1", devices=2)
D = WorkerLink("d", "decode", "rdma", "mlx5_0:1", devices=2)


@pytest.mark.parametrize(
    ("found", "reason", "status", "words"),
    [
        (replace(GOOD, pools={"prefill": needs(0)}), "NotRequired", True, ""),
        (replace(GOOD, multus=False), "MultusAbsent", False, "install Multus"),
        (replace(GOOD, nads={WHERE: None}), "NetworkAttachmentMissing", False, "nets/fabric does not exist"),
        (replace(GOOD, hidden=frozenset({WHERE})), "AttachmentNotReadable", None, "may not read nets/fabric"),
        (replace(GOOD, nads={WHERE: nad("macvlan", "rdma")}), "AttachmentInvalid", False, "nets/fabric"),
        (replace(GOOD, nads={WHERE: nad("rdma", "sriov")}), "AttachmentInvalid", False, "the rdma plugin comes first"),
        (PLAIN, "NetworkFound", True, "network attachment nets/fabric exists"),
        (GOOD, "NetworkFound", True, f"2 nodes for prefill, 2 nodes for decode (2 {VF})"),
        (replace(GOOD, nodes=[node("a", 8, 8)]), "NetworkFound", True, "1 node for prefill, 1 node for decode"),
        (replace(GOOD, nodes=None), "NodesNotReadable", None, "may not list nodes"),
        (replace(GOOD, nodes=None, declared="auto"), "NetworkFound", True, "exists"),
        (replace(GOOD, nodes=[node("a", 0, 8)]), "RdmaResourceMissing", False, f"no node has {VF} to allocate"),
        (replace(GOOD, nodes=[]), "RdmaResourceMissing", False, f"no node has {VF} to allocate"),
        (replace(GOOD, nodes=[node("a", 1, 8)]), "RdmaResourceMissing", False, "no node has more than 1"),
        (
            replace(GOOD, nodes=[node("a", 8, 0), node("b", 8, 8, unschedulable=True)]),
            "NoNodeFits", False,
            f"none of 2 nodes can run a worker of prefill: 1 with 0 of 2 {GPU}, 1 with cordoned",
        ),
        (replace(GOOD, nads={WHERE: nad("sriov")}), "RdmaChainMissing", False, "chain the plugin rdma; 2 nodes"),
        # What workers find counts more than what the configuration suggests.
        (replace(GOOD, nads={WHERE: nad("sriov")}, view=view(P, D)), "TransportUnproven", True, "no counter"),
        (replace(GOOD, nads={WHERE: nad("sriov")}, view=view(P)), "RdmaChainMissing", False, "chain"),
        (
            replace(GOOD, nads={WHERE: nad("sriov")}, view=view(replace(P, devices=0), evidence="Proved")),
            "NetworkFound", True, "2 nodes",
        ),
        (replace(GOOD, view=view(P, D, evidence="Proved")), "NetworkFound", True, "2 nodes"),
        (replace(GOOD, view=view(P, D), declared="auto"), "NetworkFound", True, "2 nodes"),
        (replace(GOOD, view=view(replace(P, transport="tcp"))), "NetworkFound", True, "2 nodes"),
        (replace(GOOD, view=RouterView(1, 0, (P, D))), "NetworkFound", True, "2 nodes"),
        (replace(GOOD, view=view(P, replace(D, problem=MEMLOCK))), "MemlockTooLow", False, "d: memory of 8 MiB"),
        (replace(GOOD, told={"x": NO_DEVICE}), "NoUverbsDevice", False, "x: no RDMA device"),
        (replace(GOOD, told={"x": WorkerProblem("EngineHung", "")}), "NetworkFound", True, "2 nodes"),
        # What only RDMA lacks is nothing to whoever wants TCP.
        (replace(GOOD, declared="tcp", told={"x": NO_DEVICE}), "NetworkFound", True, "2 nodes"),
        (replace(GOOD, declared="tcp", nads={WHERE: nad("sriov")}), "NetworkFound", True, "2 nodes"),
        # The commonest one is told.
        (
            replace(GOOD, told={"x": NO_DEVICE, "y": MEMLOCK, "z": MEMLOCK}),
            "MemlockTooLow", False, "y (and 1 more): memory of 8 MiB",
        ),
    ],
)  # fmt: skip
def test_the_first_thing_that_lacks_is_named(found: Findings, reason: str, status: bool | None, words: str) -> None:
    check = network_check(found)
    assert (check.reason, check.ok if check.known else None) == (reason, status)
    assert words in check.message


def test_a_worker_that_says_it_has_fewer_devices_than_it_is_attached_to_proves_nothing() -> None:
    found = replace(GOOD, nads={WHERE: nad("sriov")})
    for devices, reason in ((2, "TransportUnproven"), (1, "RdmaChainMissing"), (99, "TransportUnproven")):
        check = network_check(replace(found, view=view(P, replace(D, devices=devices))))
        assert check.reason == reason, devices


def test_a_network_that_is_changed_under_running_pods_is_judged_for_the_next_ones() -> None:
    """What runs keeps what it was attached to; the next pod would get no device."""
    changed = nad("sriov")
    changed["metadata"]["managedFields"] = [{"manager": "admin", "time": "2026-12-01T15:00:00Z"}]

    def check(*created: str, evidence: str = "Configured") -> tuple[str, bool]:
        pods = [
            {"metadata": {"name": name, "creationTimestamp": f"2026-12-01T{hour}:00:00Z"}}
            for name, hour in zip(("p", "d"), created, strict=True)
        ]
        found = replace(GOOD, nads={WHERE: changed}, pods=pods, view=view(P, D, evidence=evidence))
        told = network_check(found)
        return told.reason, told.ok

    assert check("16", "16") == ("TransportUnproven", True)
    assert check("14", "14") == ("RdmaChainMissing", False)
    assert check("16", "14") == ("RdmaChainMissing", False)
    assert check("14", "14", evidence="Proved") == ("RdmaChainMissing", False)
    assert check("16", "16", evidence="Proved") == ("NetworkFound", True)


def test_nodes_of_several_makers_are_counted_for_the_pool_that_fits_them() -> None:
    amd = "amd.com/gpu"
    others = {"metadata": {"name": "m"}, "status": {"allocatable": {VF: "8", amd: "8"}}}
    mixed = {"prefill": WORKER, "decode": needs(2, **{VF: "2", amd: "2"})}
    found = replace(GOOD, pools=mixed, nodes=[node("a", 8, 8), node("b", 8, 8), others])
    assert network_check(found).message.startswith("2 nodes for prefill, 1 node for decode")
    check = network_check(replace(found, nodes=[node("a", 8, 8)]))
    assert (check.reason, check.message) == (
        "NoNodeFits", f"none of 1 nodes can run a worker of decode: 1 with 0 of 2 {amd}",
    )  # fmt: skip


def test_pods_that_multus_gave_too_little_are_named() -> None:
    annotations = {
        **template(2)["metadata"]["annotations"],
        "k8s.v1.cni.cncf.io/network-status": json.dumps([{"interface": "net1"}]),
    }
    found = network_check(replace(GOOD, pods=[{"metadata": {"name": "w", "annotations": annotations}}]))
    assert (found.reason, found.ok) == ("RailsIncomplete", False)
    assert "w has 1 of 2 interfaces: no net2" in found.message


def test_where_another_transport_is_tolerated_the_deployment_is_ready_without_rdma() -> None:
    for changes in ({"told": {"x": MEMLOCK}}, {"nads": {WHERE: nad("sriov")}}):
        assert [network_check(replace(GOOD, tolerant=t, **changes)).tolerated for t in (True, False)] == [True, False]
    assert not network_check(replace(GOOD, tolerant=True, multus=False)).tolerated


def test_what_rdma_lacks_degrades_a_deployment_that_serves_without() -> None:
    def told(*, tolerated: bool) -> dict[str, tuple[str, str]]:
        check = NetworkCheck(False, "MemlockTooLow", "x", tolerated=tolerated)
        return {c.type: (c.status, c.reason) for c in conditions(INTENT, seen(network=check))}

    found = told(tolerated=True)
    assert found["NetworkReady"] == ("False", "MemlockTooLow")
    assert (found["Ready"], found["Degraded"]) == (("True", "Ready"), ("True", "MemlockTooLow"))
    assert told(tolerated=False)["Ready"] == ("False", "MemlockTooLow")


def test_only_the_devices_of_the_network_are_its_own() -> None:
    assert (WORKER.devices, WORKER.others, len(WORKER.links)) == ({VF: 2}, {GPU: 2}, 2)
    assert needs_of({}, "default", frozenset()) == PoolNeeds((), {}, {}, {})


def test_devices_by_claims_are_checked_by_what_workers_find() -> None:
    claims = [{"name": "devices", "resourceClaimTemplateName": "pairs"}, {"name": "mine", "resourceClaimName": "x"}]
    claimed = needs_of({"spec": {"resourceClaims": claims}}, "default", frozenset())
    assert claimed.claims == ("pairs",)
    found = replace(GOOD, pools={"prefill": claimed, "decode": claimed}, multus=False, nads={}, nodes=None)
    check = network_check(found)
    assert (check.reason, check.ok, check.message) == ("NetworkFound", True, "devices by pairs")
    check = network_check(replace(found, told={"x": NO_DEVICE}))
    assert (check.reason, check.ok) == ("NoUverbsDevice", False)
