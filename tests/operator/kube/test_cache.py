"""Tests of the cache: which change leads to a reconcile of which resource."""

from __future__ import annotations

from typing import Any

from disagg_operator.kube.cache import MISSED, WATCHED, Cache
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, POD

KEY = ("n", "chat")


def resource(generation: int = 1, uid: str = "u", **status: Any) -> dict[str, Any]:
    meta = {"name": "chat", "namespace": "n", "uid": uid, "generation": generation}
    return {"metadata": meta, "spec": {}, "status": status}


def pod(name: str = "p", ready: str = "True", labels: dict[str, str] | None = None) -> dict[str, Any]:
    labels = {"disagg.dev/deployment": "chat"} if labels is None else labels
    meta = {"name": name, "namespace": "n", "uid": name, "labels": labels, "managedFields": [{"x": 1}]}
    return {"metadata": meta, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def test_a_change_of_spec_wakes_and_our_own_status_does_not() -> None:
    cache = Cache()
    assert cache.put(DISAGG_DEPLOYMENT, resource()) == {KEY}
    assert cache.put(DISAGG_DEPLOYMENT, resource(decode="1/1")) == set()
    assert cache.put(DISAGG_DEPLOYMENT, resource(generation=2)) == {KEY}
    assert cache.get(DISAGG_DEPLOYMENT, KEY) == resource(generation=2)


def test_a_request_to_update_the_runtime_wakes_and_other_annotations_do_not() -> None:
    cache = Cache()
    asked = resource()
    cache.put(DISAGG_DEPLOYMENT, asked)
    for marks, woken in (
        ({"note": "x"}, set()),
        ({"disagg.dev/update-runtime": "1"}, {KEY}),
        ({"disagg.dev/update-runtime": "1", "note": "y"}, set()),
        ({"disagg.dev/update-runtime": "2"}, {KEY}),
    ):
        changed = {**asked, "metadata": {**asked["metadata"], "annotations": marks}}
        assert cache.put(DISAGG_DEPLOYMENT, changed) == woken
    assert cache.objects(DISAGG_DEPLOYMENT) == [changed]


def test_a_pod_wakes_its_deployment_when_its_readiness_changes() -> None:
    cache = Cache()
    assert cache.put(POD, pod(ready="False")) == {KEY}
    assert cache.put(POD, pod(ready="False")) == set()
    assert cache.put(POD, pod()) == {KEY}
    assert cache.put(POD, pod("q", labels={})) == set()
    assert [p["metadata"]["name"] for p in cache.pods_by_deployment()[KEY]] == ["p"]
    assert "managedFields" not in cache.pods_by_deployment()[KEY][0]["metadata"]


def test_a_full_list_repairs_what_the_watch_lost() -> None:
    cache = Cache()
    cache.put(POD, pod("lost"))
    cache.put(POD, pod("kept"))
    assert cache.replace(POD, [pod("kept"), pod("new")]) == {KEY}
    assert {p["metadata"]["name"] for p in cache.pods_by_deployment()[KEY]} == {"kept", "new"}
    assert cache.replace(POD, [pod("kept"), pod("new")]) == set()


def test_a_late_deletion_of_an_earlier_object_removes_nothing() -> None:
    cache = Cache()
    cache.put(DISAGG_DEPLOYMENT, resource(uid="second"))
    assert cache.drop(DISAGG_DEPLOYMENT, resource(uid="first")) == set()
    assert cache.keys() == [KEY]
    assert cache.drop(DISAGG_DEPLOYMENT, resource(uid="second")) == {KEY}
    assert cache.keys() == []


def test_a_deployment_wakes_by_its_counts_and_the_reasons_of_its_conditions() -> None:
    def seen(**status: Any) -> dict[str, Any]:
        meta = {"name": "d", "namespace": "n", "uid": "d", "labels": {"disagg.dev/deployment": "chat"}}
        return {"metadata": meta, "status": status}

    def progressing(reason: str, message: str = "") -> list[dict[str, str]]:
        return [
            {"type": "Progressing", "status": "True", "reason": reason, "message": message, "lastUpdateTime": message}
        ]

    cache = Cache()
    assert cache.put(DEPLOYMENT, seen(replicas=1)) == {KEY}
    assert cache.put(DEPLOYMENT, seen(replicas=1)) == set()
    assert cache.put(DEPLOYMENT, seen(replicas=2)) == {KEY}
    assert cache.put(DEPLOYMENT, seen(replicas=2, conditions=progressing("ReplicaSetUpdated", "1"))) == {KEY}
    assert cache.put(DEPLOYMENT, seen(replicas=2, conditions=progressing("ReplicaSetUpdated", "2"))) == set()
    assert cache.put(DEPLOYMENT, seen(replicas=2, conditions=progressing("ProgressDeadlineExceeded"))) == {KEY}


def test_a_pod_wakes_its_deployment_when_a_container_waits_or_restarts() -> None:
    def waiting(reason: str, restarts: int = 0) -> dict[str, Any]:
        found = pod()
        found["status"]["containerStatuses"] = [
            {"name": "main", "ready": False, "restartCount": restarts, "state": {"waiting": {"reason": reason}}}
        ]
        return found

    cache = Cache()
    cache.put(POD, pod())
    assert cache.put(POD, waiting("ContainerCreating")) == {KEY}
    assert cache.put(POD, waiting("ContainerCreating")) == set()
    assert cache.put(POD, waiting("CrashLoopBackOff")) == {KEY}
    assert cache.put(POD, waiting("CrashLoopBackOff", restarts=1)) == {KEY}


def test_a_pod_wakes_its_deployment_when_a_container_ends() -> None:
    def seen(kind: str, state: dict[str, Any]) -> dict[str, Any]:
        found = pod()
        found["status"][kind] = [{"name": "main", "ready": False, "restartCount": 0, "state": state}]
        return found

    cache = Cache()
    cache.put(POD, pod())
    for kind in ("initContainerStatuses", "containerStatuses"):
        assert cache.put(POD, seen(kind, {"running": {}})) == {KEY}
        assert cache.put(POD, seen(kind, {"terminated": {"exitCode": 1, "reason": "Error"}})) == {KEY}
        assert cache.put(POD, seen(kind, {"terminated": {"exitCode": 1, "reason": "Error", "message": "x"}})) == {KEY}
        assert cache.put(POD, seen(kind, {"terminated": {"exitCode": 1, "reason": "Error", "message": "x"}})) == set()


def test_of_other_children_only_the_deletion_wakes() -> None:
    cache = Cache()
    assert not set(MISSED) & set(WATCHED)
    for kind in MISSED:
        assert cache.put(kind, pod()) == set()
        assert cache.drop(kind, pod()) == {KEY}
        assert cache.drop(kind, pod(labels={})) == set()
