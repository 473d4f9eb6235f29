"""Tests of the cache: which change leads to a reconcile of which resource."""

from __future__ import annotations

import json
from typing import Any

import pytest

from disagg_operator.kube.cache import MISSED, Cache, is_kept, version_of
from disagg_operator.kube.listings import Listing
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    POD,
    SECRET,
    SERVICE,
    Resource,
    name_of,
)
from disagg_wire.labels import LABEL_DEPLOYMENT

KEY = ("n", "chat")
LABELS = {LABEL_DEPLOYMENT: "chat"}


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


def test_objects_share_their_names_and_short_texts() -> None:
    cache, long = Cache(), "x" * 100
    for name in ("p", "q"):
        container = {"image": "w:1", "env": [name, 1, None, {"value": "some words"}], "long": long}
        cache.put(POD, json.loads(json.dumps({**pod(name), "spec": {"containers": [container]}})))
    one, other = (obj["spec"]["containers"][0] for obj in cache.objects(POD))
    assert (one["env"][:3], other["env"][:3], other["long"]) == (["p", 1, None], ["q", 1, None], long)
    assert one["env"][3]["value"] is other["env"][3]["value"]
    assert all(a is b for a, b in zip(one, other, strict=True))
    before = cache.objects(POD)
    cache.put(POD, json.loads(json.dumps(before[0] | {"metadata": {**before[0]["metadata"], "managedFields": []}})))
    assert cache.objects(POD)[0] is before[0]  # nothing is copied that has not changed


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


def test_other_words_of_a_failure_wake_and_another_name_of_a_refused_pod_does_not() -> None:
    meta = {"name": "d", "namespace": "n", "uid": "d", "labels": {LABEL_DEPLOYMENT: "chat"}}

    def refused(name: str, why: str) -> dict[str, Any]:
        message = f'pods "{name}" is forbidden: {why}'
        failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
        return {"metadata": meta, "status": {"conditions": [failure]}}

    def unscheduled(words: str) -> dict[str, Any]:
        found = pod()
        why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
        found["status"]["conditions"] = [why]
        return found

    cache = Cache()
    assert cache.put(DEPLOYMENT, refused("d-1", "violates PodSecurity")) == {KEY}
    assert cache.put(DEPLOYMENT, refused("d-2", "violates PodSecurity")) == set()
    assert cache.put(DEPLOYMENT, refused("d-3", "exceeded quota")) == {KEY}
    assert cache.put(POD, unscheduled("no GPU")) == {KEY}
    assert cache.put(POD, unscheduled("no GPU")) == set()
    assert cache.put(POD, unscheduled("a taint")) == {KEY}


def test_a_pod_wakes_its_deployment_when_a_container_waits_or_restarts() -> None:
    def waiting(reason: str, restarts: int = 0, message: str = "") -> dict[str, Any]:
        found = pod()
        found["status"]["containerStatuses"] = [
            {"name": "main", "ready": False, "restartCount": restarts,
             "state": {"waiting": {"reason": reason, "message": message}}}
        ]  # fmt: skip
        return found

    cache = Cache()
    cache.put(POD, pod())
    assert cache.put(POD, waiting("ContainerCreating")) == {KEY}
    assert cache.put(POD, waiting("ContainerCreating")) == set()
    assert cache.put(POD, waiting("CrashLoopBackOff")) == {KEY}
    assert cache.put(POD, waiting("CrashLoopBackOff", restarts=1)) == {KEY}
    assert cache.put(POD, waiting("CreateContainerConfigError", message="no Secret a")) == {KEY}
    assert cache.put(POD, waiting("CreateContainerConfigError", message="no Secret b")) == {KEY}


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


@pytest.mark.parametrize("kind", MISSED, ids=lambda kind: kind.kind)
def test_of_other_children_deletions_and_edits_of_others_wake(kind: Resource) -> None:
    cache = Cache()
    made, edited = version(pod(), 5), version({**pod(), "rules": []}, 6)
    assert cache.put(kind, made) == set()
    assert cache.put(kind, edited) == {KEY}
    assert cache.put(kind, edited) == set()
    status_alone = version({**edited, "status": {"disruptionsAllowed": 1}}, 7)
    assert cache.put(kind, status_alone) == set()
    assert cache.put(kind, version(status_alone, 8, labels={**LABELS, "a": "b"})) == {KEY}
    cache.note(kind, version({**pod(), "rules": ["ours"]}, 9))
    assert cache.put(kind, version({**pod(), "rules": ["ours"]}, 9)) == set()
    assert cache.put(kind, version({**pod(), "rules": ["late"]}, 8)) == set()
    assert cache.drop(kind, pod()) == {KEY}
    assert cache.drop(kind, pod(labels={})) == set()


@pytest.mark.parametrize("kind", [DEPLOYMENT, DISAGG_POOL], ids=lambda kind: kind.kind)
def test_marks_of_the_operator_and_owners_that_somebody_removes_wake(kind: Resource) -> None:
    cache = Cache()
    meta = {"name": "d", "namespace": "n", "uid": "d", "labels": LABELS, "ownerReferences": [{"uid": "u"}]}
    for marks, owners, woken in (
        ({"disagg.dev/served": "yes", "other": "1"}, [{"uid": "u"}], {KEY}),
        ({"disagg.dev/served": "yes", "other": "2"}, [{"uid": "u"}], set()),
        ({"other": "2"}, [{"uid": "u"}], {KEY}),
        ({"other": "2"}, [], {KEY}),
    ):
        seen = {"metadata": {**meta, "annotations": marks, "ownerReferences": owners}}
        assert cache.put(kind, seen) == woken


def version(obj: dict[str, Any], number: int, **meta: Any) -> dict[str, Any]:
    return {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(number), **meta}}


def held(cache: Cache) -> int:
    found = cache.get(POD, ("n", "p"))
    return -1 if found is None else version_of(found)


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = Cache()
    assert cache.put(POD, version(pod(), 5)) == {KEY}
    assert cache.put(POD, version(pod(labels={**LABELS, "new": "x"}), 4)) == set()
    assert cache.note(POD, version(pod(), 3)) is None
    assert held(cache) == 5
    assert cache.put(POD, version(pod(labels={**LABELS, "new": "x"}), 6)) == {KEY}
    assert held(cache) == 6


def test_what_was_noted_counts_as_news_when_its_event_comes() -> None:
    cache = Cache()
    cache.note(POD, version(pod(), 5))
    assert cache.family(KEY) == [cache.get(POD, ("n", "p"))]
    assert cache.put(POD, version(pod(), 5)) == {KEY}
    assert cache.put(POD, version(pod(), 5)) == set()


def test_what_comes_while_a_kind_is_listed_survives_the_list() -> None:
    cache = Cache()
    cache.put(POD, version(pod(name="old"), 5))
    newest = cache.newest(POD)
    cache.put(POD, version(pod(), 6))
    cache.put(POD, version(pod(name="old"), 7))
    assert cache.replace(POD, [version(pod(name="old"), 5)], newest) == set()
    assert held(cache) == 6
    assert [version_of(obj) for obj in cache.family(KEY)] == [7, 6]
    assert cache.replace(POD, [], cache.newest(POD)) == {KEY}
    assert cache.family(KEY) == []


def test_a_list_of_older_versions_is_that_of_a_backup() -> None:
    cache = Cache()
    cache.put(POD, version(pod(), 50))
    cache.replace(POD, [version(pod(), 7)], cache.newest(POD))
    assert (held(cache), cache.newest(POD)) == (7, 7)
    cache.put(POD, version(pod(), 8))
    assert held(cache) == 8


def test_a_read_of_one_family_leaves_the_others_alone() -> None:
    cache = Cache()
    other = {**LABELS, LABEL_DEPLOYMENT: "other"}
    cache.put(POD, version(pod(), 5))
    cache.put(POD, version(pod(name="q", labels=other), 5))
    cache.put(SERVICE, version(pod(name="s"), 5))
    newest = {POD.kind: cache.newest(POD)}
    cache.put(POD, version(pod(name="late"), 6))
    found = {**version(pod(name="found"), 5), "kind": POD.kind}
    cache.replace_family(KEY, [found], newest)
    assert [name_of(obj) for obj in cache.family(KEY)] == ["found", "late", "s"]
    assert [name_of(obj) for obj in cache.family((KEY[0], "other"))] == ["q"]


def test_an_object_whose_label_changes_leaves_its_family() -> None:
    cache = Cache()
    cache.put(POD, version(pod(), 5))
    cache.put(POD, version(pod(labels={**LABELS, LABEL_DEPLOYMENT: "other"}), 6))
    assert cache.family(KEY) == []
    assert len(cache.family((KEY[0], "other"))) == 1


@pytest.mark.parametrize(
    ("kind", "labels", "kept"),
    [
        (POD, LABELS, True),
        (POD, {}, False),
        (DISAGG_POOL, {}, True),
        (SERVICE, LABELS, True),
        (SECRET, LABELS, False),
    ],
)
def test_what_the_watches_bring(kind: Resource, labels: dict[str, str], kept: bool) -> None:
    assert is_kept(kind, pod(labels=labels)) is kept


def test_a_version_that_is_no_number_is_the_oldest() -> None:
    assert version_of(pod()) == 0
    assert version_of({"metadata": {"resourceVersion": "x1"}}) == 0


def test_what_is_deleted_while_a_kind_is_listed_does_not_come_back_with_the_list() -> None:
    cache = Cache()
    cache.put(POD, version(pod(), 5))
    newest = cache.newest(POD)
    assert cache.drop(POD, version(pod(), 6)) == {KEY}
    cache.replace(POD, [version(pod(), 5)], newest)
    assert held(cache) == -1
    cache.replace(POD, [version(pod(), 5)], cache.newest(POD))  # a backup in which it still exists
    assert held(cache) == 5


def test_what_is_deleted_while_a_family_is_read_does_not_come_back() -> None:
    cache = Cache()
    cache.put(POD, version(pod(), 5))
    newest = {POD.kind: cache.newest(POD)}
    cache.drop(POD, version(pod(), 6))
    cache.replace_family(KEY, [{**version(pod(), 5), "kind": POD.kind}], newest)
    assert held(cache) == -1


@pytest.mark.parametrize(
    ("namespace", "version", "left"),
    [
        ("", 5, {"kept", "newer"}),
        ("n", 5, {"kept", "newer"}),
        ("other", 5, {"kept", "gone", "newer"}),
        ("", 9, {"kept"}),
    ],
)
def test_what_a_list_does_not_have_is_gone_if_it_was_older(namespace: str, version: int, left: set[str]) -> None:
    cache = Cache()
    for name, seen in (("kept", "1"), ("gone", "2"), ("newer", "7")):
        found = pod(name)
        found["metadata"]["resourceVersion"] = seen
        cache.put(POD, found)
    woken = cache.drop_unlisted(Listing(POD, namespace, frozenset({("n", "kept")}), version))
    assert {p["metadata"]["name"] for p in cache.pods_by_deployment()[KEY]} == left
    assert woken == ({KEY} if len(left) < 3 else set())
