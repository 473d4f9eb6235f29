"""What objects of a cluster say about a rollout."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.kube.pods import DRAIN_UNTIL
from disagg_operator.rollout import looking
from disagg_operator.rollout.looking import SERVED_ANNOTATION, Told
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.values import Devices, Workers
from disagg_operator.vocabulary import Obj

KEY = ("decode", "r1")
GPUS = frozenset({"nvidia.com/gpu", "amd.com/gpu"})


def deployment(revision: str = "r1", replicas: int = 2, limits: Any = None, mark: str = "", **pod: Any) -> Obj:
    labels = {"disagg.dev/pool": "decode", "disagg.dev/revision": revision}
    meta = {"name": "chat-decode", "labels": labels, "annotations": {SERVED_ANNOTATION: mark} if mark else {}}
    container = {"name": "main", "resources": {"limits": limits or {}}}
    spec = {"replicas": replicas, "template": {"spec": {"containers": [container], **pod}}}
    return {"kind": "Deployment", "metadata": meta, "spec": spec}


def pod(name: str, *, ready: bool = False, node: str = "n", leaves: bool = False, no_room: str = "") -> Obj:
    labels = {"disagg.dev/pool": "decode", "disagg.dev/revision": "r1"}
    conditions = [{"type": "Ready", "status": "True"}] if ready else []
    if no_room:
        conditions.append(
            {
                "type": "PodScheduled",
                "reason": "Unschedulable",
                "message": no_room,
                "lastTransitionTime": "1970-01-01T00:01:00Z",
            }
        )
    meta = {"name": name, "labels": labels} | ({"deletionTimestamp": "2026-01-01T00:00:00Z"} if leaves else {})
    return {
        "kind": "Pod",
        "metadata": meta,
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": conditions},
    }


def seen(pods: list[Obj], made: Obj | None = None, told: Told | None = None) -> Workers:
    return looking.workers(KEY, made or deployment(), pods, told or Told(), 3, GPUS)


def test_pods_are_counted_by_what_they_do() -> None:
    found = seen([pod("a", ready=True), pod("b"), pod("c", leaves=True, ready=True), pod("d", node="")])
    assert (found.desired, found.existing, found.ready, found.terminating, found.unscheduled) == (2, 3, 1, 1, 1)
    assert (found.unschedulable_since_s, found.served, found.compat, found.order) == (None, False, "", 3)


@pytest.mark.parametrize(
    ("replicas", "marked", "numbers"),
    [
        # (desired, existing, ready, terminating, recallable)
        pytest.param(3, "", (3, 3, 3, 0, 0), id="nobody goes"),
        pytest.param(3, "a", (2, 2, 2, 1, 1), id="one drains"),
        pytest.param(2, "a", (2, 2, 2, 1, 0), id="it is as good as deleted"),
        pytest.param(2, "ab", (1, 1, 1, 2, 1), id="one of two is"),
        pytest.param(4, "a", (3, 2, 2, 1, 1), id="another one is still to come"),
        pytest.param(3, "abc", (0, 0, 0, 3, 3), id="all go"),
        pytest.param(0, "abc", (0, 0, 0, 3, 0), id="all are as good as deleted"),
    ],
)
def test_pods_that_drain_are_on_their_way_out(replicas: int, marked: str, numbers: tuple[int, ...]) -> None:
    pods = [pod(name, ready=True) for name in "abc"]
    for one in pods:
        if one["metadata"]["name"] in marked:
            one["metadata"]["annotations"] = {DRAIN_UNTIL: "2026-01-01T00:00:00Z"}
    found = seen(pods, deployment(replicas=replicas))
    assert (found.desired, found.existing, found.ready, found.terminating, found.recallable) == numbers


@pytest.mark.parametrize(
    ("message", "since_s"),
    [
        pytest.param("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", 60.0, id="room may come"),
        pytest.param("0/3 nodes are available: 3 Too many pods.", 60.0, id="so many pods"),
        pytest.param("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity.", None, id="no node fits"),
    ],
)
def test_only_a_pod_for_which_others_could_make_room_waits_for_room(message: str, since_s: float | None) -> None:
    assert seen([pod("a", node="", no_room=message)]).unschedulable_since_s == since_s


def test_a_pod_without_a_time_waits_for_nothing() -> None:
    without = pod("a", node="", no_room="Insufficient cpu")
    without["status"]["conditions"][0]["lastTransitionTime"] = None
    assert seen([without]).unschedulable_since_s is None


@pytest.mark.parametrize(
    ("mark", "told", "served", "compat"),
    [
        pytest.param("", {"a": "k"}, False, "k", id="a router tells"),
        pytest.param("yes", {}, True, "", id="it served, and nobody said how"),
        pytest.param("k", {}, True, "k", id="remembered"),
        pytest.param("k", {"a": "new"}, True, "new", id="the router knows better"),
    ],
)
def test_what_has_served_stays_known(mark: str, told: dict[str, str], served: bool, compat: str) -> None:
    found = seen([pod("a", ready=True)], deployment(mark=mark), Told(told))
    assert (found.served, found.compat) == (served, compat)
    assert looking.served_mark(found) == (compat or "yes")


@pytest.mark.parametrize(
    ("limits", "nodes", "devices"),
    [
        pytest.param({}, {}, Devices(), id="a CPU worker"),
        pytest.param({"memory": "1Gi", "rdma/hca": "8"}, {}, Devices(), id="other devices"),
        pytest.param({"nvidia.com/gpu": "0"}, {}, Devices(), id="none of them"),
        pytest.param({"nvidia.com/gpu": "8"}, {}, Devices("nvidia.com/gpu", 8), id="GPUs"),
        pytest.param({"amd.com/gpu": 2}, {"a": "b"}, Devices("amd.com/gpu of a=b", 2), id="of certain nodes"),
    ],
)
def test_a_worker_holds_accelerators_or_a_place_for_a_pod(limits: Any, nodes: Any, devices: Devices) -> None:
    assert looking.devices_of(deployment(limits=limits, nodeSelector=nodes), GPUS) == devices
    assert looking.devices_of(None, GPUS) == Devices()


def test_only_the_deployments_of_workers_are_workloads() -> None:
    router = {"kind": "Deployment", "metadata": {"name": "r", "labels": {}}}
    service = {"kind": "Service", "metadata": {"name": "s", "labels": deployment()["metadata"]["labels"]}}
    assert looking.workloads([router, service, deployment()]) == {KEY: deployment()}
    assert looking.pods_of([pod("a"), router], KEY) == [pod("a")]


def test_a_pair_of_the_target_is_linked_when_it_has_moved_kv() -> None:
    prefill = pod("p", ready=True)
    prefill["metadata"]["labels"] = {"disagg.dev/pool": "prefill", "disagg.dev/revision": "r1"}
    pods, target = [prefill, pod("d", ready=True)], {"prefill": "r1", "decode": "r1"}
    assert looking.linked(None, pods, target) is None
    assert looking.linked(Told(links=frozenset({("p", "d")})), pods, target) is True
    assert looking.linked(Told(links=frozenset({("p", "x")})), pods, target) is False
    # A router of an earlier release does not tell single pairs.
    assert looking.linked(Told(all_healthy=True), pods, target) is True


def test_revisions_of_no_known_spec_belong_together() -> None:
    known = [KnownRevision("a-b", 1, "a", "b", None, "", {}), KnownRevision("a-c", 2, "a", "c", None, "", {})]
    live = [("prefill", "a"), ("prefill", "x"), ("decode", "c"), ("decode", "y")]
    assert looking.pairs_of(known, live) == {("a", "b"), ("a", "c"), ("x", "y")}
    assert [looking.order_of(known, key) for key in live] == [2, 0, 2, 0]
