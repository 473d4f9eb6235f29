"""Tests of the observations that are made of Kubernetes objects."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.kube.pods import http_port, is_ready
from disagg_operator.status.pod_problems import Problem
from disagg_operator.status.workloads import (
    Workload,
    pool,
    workload,
)


def deployment(generation: int = 2, **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "d", "generation": generation}, "status": status}


def pod(waiting: str = "", message: str = "", unschedulable: str = "", **meta: Any) -> dict[str, Any]:
    conditions = []
    if unschedulable:
        conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}]
    states = [{"name": "main", "state": {"waiting": {"reason": waiting, "message": message}}}] if waiting else []
    return {"metadata": {"name": "p", **meta}, "status": {"conditions": conditions, "containerStatuses": states}}


@pytest.mark.parametrize(
    ("status", "complete"),
    [
        pytest.param(
            {"observedGeneration": 2, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}, True, id="done"
        ),
        pytest.param(
            {"observedGeneration": 1, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2},
            False,
            id="spec not yet seen",
        ),
        pytest.param(
            {"observedGeneration": 2, "replicas": 3, "readyReplicas": 3, "updatedReplicas": 2},
            False,
            id="an old pod is left",
        ),
        pytest.param(
            {"observedGeneration": 2, "replicas": 2, "readyReplicas": 1, "updatedReplicas": 2},
            False,
            id="a pod is not ready",
        ),
        pytest.param({}, False, id="no status yet"),
    ],
)
def test_a_workload_is_complete_only_when_all_of_it_is_new_and_ready(status: dict[str, Any], complete: bool) -> None:
    assert workload("decode", 2, deployment(**status), []).complete is complete


def test_the_worst_problem_speaks_and_counts_its_like() -> None:
    pods = [pod(unschedulable="full"), pod("ImagePullBackOff", "x"), pod("ErrImagePull", "y")]
    problem = workload("decode", 3, deployment(), pods).problem
    assert problem is not None
    assert problem.reason == "ImagePull"
    assert problem.message.endswith("(and 1 more)")


def test_pods_that_the_api_server_refuses_are_named() -> None:
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    assert workload("decode", 1, deployment(conditions=[refused]), []).problem == Problem(
        "PodsRefused", "exceeded quota"
    )


def test_readiness_and_ports() -> None:
    ready = {"metadata": {"name": "p"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert is_ready(ready)
    assert not is_ready({**ready, "metadata": {"name": "p", "deletionTimestamp": "now"}})
    ports = [{"name": "kv", "containerPort": 9000}, {"name": "http", "containerPort": 8001}]
    assert http_port({"spec": {"containers": [{"ports": ports}]}}, 8000) == 8001
    assert http_port({}, 8000) == 8000


def test_a_workload_that_was_never_made_has_no_pods() -> None:
    assert workload("decode", 2, None, [pod("ImagePullBackOff")]) == Workload("decode", 2)


def test_a_refusal_that_is_over_or_another_condition_is_no_problem() -> None:
    over = {"type": "ReplicaFailure", "status": "False", "message": "exceeded quota"}
    other = {"type": "Available", "status": "True"}
    assert workload("decode", 1, deployment(conditions=[over, other]), []).problem is None


def test_a_pool_is_all_of_its_revisions() -> None:
    status = {"observedGeneration": 2, "replicas": 2, "readyReplicas": 2, "updatedReplicas": 2}
    labels = {"labels": {"disagg.dev/revision": "new"}}
    new = {**deployment(**status), "metadata": {"name": "n", "generation": 2, **labels}}
    alone = pool("decode", 2, [new], "new", [])
    assert (alone.current, alone.ready, alone.complete) == (2, 2, True)
    both = pool("decode", 2, [new, deployment(**status)], "new", [])
    assert (both.current, both.ready, both.updated, both.complete) == (4, 4, 2, False)
