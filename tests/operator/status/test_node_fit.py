"""Tests of whether a node can run a pod."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.status.node_fit import allocatable, devices_of, hindrance

DEVICES = {"nvidia.com/gpu": 8, "rdma/hca": 8}
NODE: dict[str, Any] = {
    "metadata": {"name": "n", "labels": {"zone": "a", "gpus": "8"}},
    "spec": {
        "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}, {"key": "soft", "effect": "PreferNoSchedule"}]
    },
    "status": {"allocatable": {"nvidia.com/gpu": "8", "rdma/hca": "8", "cpu": "64"}},
}  # fmt: skip
TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


def affinity(*expressions: dict[str, Any]) -> dict[str, Any]:
    terms = [{"matchExpressions": [e]} for e in expressions]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    ("pod", "node", "words"),
    [
        ({}, {}, ""),
        ({"nodeSelector": {"zone": "a"}}, {}, ""),
        ({"nodeSelector": {"zone": "b"}}, {}, "no label zone=b"),
        ({"nodeSelector": {"x": "y"}}, {"metadata": {}}, "no label x=y"),
        ({}, {"spec": {"unschedulable": True}}, "cordoned"),
        ({}, {"status": {"allocatable": {"nvidia.com/gpu": "8", "rdma/hca": "4"}}}, "4 of 8 rdma/hca"),
        ({}, {"status": {}}, "0 of 8 nvidia.com/gpu"),
        ({"tolerations": []}, {}, "taint nvidia.com/gpu"),
        ({"tolerations": [{"operator": "Exists"}]}, {}, ""),
        ({"tolerations": [{"key": "nvidia.com/gpu"}]}, {}, ""),
        ({"tolerations": [{"key": "nvidia.com/gpu", "value": "yes"}]}, {}, "taint nvidia.com/gpu"),
        ({"tolerations": [{"key": "other", "operator": "Exists"}]}, {}, "taint nvidia.com/gpu"),
        ({"tolerations": [TOLERATION | {"effect": "NoExecute"}]}, {}, "taint nvidia.com/gpu"),
        (affinity({"key": "zone", "operator": "In", "values": ["a", "b"]}), {}, ""),
        (affinity({"key": "zone", "operator": "NotIn", "values": ["a"]}), {}, "not selected by the node affinity"),
        (affinity({"key": "zone", "operator": "Exists"}), {}, ""),
        (affinity({"key": "zone", "operator": "DoesNotExist"}), {}, "not selected by the node affinity"),
        (affinity({"key": "gpus", "operator": "Gt", "values": ["7"]}), {}, ""),
        (affinity({"key": "gpus", "operator": "Lt", "values": ["8"]}), {}, "not selected by the node affinity"),
        (affinity({"key": "zone", "operator": "Gt", "values": ["7"]}), {}, "not selected by the node affinity"),
        # One of the terms is enough.
        (affinity({"key": "zone", "operator": "In", "values": ["b"]}, {"key": "zone", "operator": "Exists"}), {}, ""),
        (affinity(), {}, ""),
        ({"affinity": {"nodeAffinity": {}}}, {}, ""),
    ],
)
def test_what_keeps_a_pod_from_a_node_is_said(pod: dict[str, Any], node: dict[str, Any], words: str) -> None:
    assert hindrance(NODE | node, {"tolerations": [TOLERATION]} | pod, DEVICES) == words


def test_devices_are_the_extended_resources_of_all_containers() -> None:
    requests = {"cpu": "1", "nvidia.com/gpu": "2", "hugepages-2Mi": "1Gi"}
    pod = {"containers": [{"resources": {"requests": requests}}, {"resources": {"requests": {"rdma/hca": 1}}}, {}]}
    assert devices_of(pod) == {"nvidia.com/gpu": 2, "rdma/hca": 1}
    assert devices_of({}) == {}


def test_an_amount_that_is_no_number_is_none() -> None:
    assert allocatable({"status": {"allocatable": {"a/b": "1k"}}}, "a/b") == 0
