"""Tests of the parts of pods; those of whole pods are in test_pod_templates.py."""

from __future__ import annotations

from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.desired import pod_parts as parts


def test_variables_are_in_order() -> None:
    assert parts.env({"B": "2", "A": "1"}) == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert parts.env_field("A", "status.podIP")["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_a_container_has_no_rights_but_those_it_is_given() -> None:
    assert parts.security()["capabilities"] == {"drop": ["ALL"]}
    assert parts.security(["IPC_LOCK"])["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert parts.pod_security().items() >= parts.user().items()


def test_a_probe_asks_by_http() -> None:
    assert parts.probe("/x", 1, 2, 3)["httpGet"] == {"path": "/x", "port": 1, "scheme": "HTTP"}


def test_the_key_is_that_of_the_deployment() -> None:
    assert parts.key_volume(parse(good()))["secret"]["secretName"] == "chat-cluster-key"


def test_all_devices_are_asked_for() -> None:
    network = {"attachment": {"type": "sriov", "resourceName": "a/vf", "subnet": "10.0.0.0/24"}}
    resource = good(
        prefill={"accelerator": {"count": 2}, "resources": {"limits": {"cpu": 1}}},
        kvTransfer={"network": network | {"rdmaResource": {"name": "rdma/hca"}}},
    )
    assert parts.worker_resources(parse(resource), "prefill") == {
        "limits": {"cpu": "1", "nvidia.com/gpu": "2", "rdma/hca": "1", "a/vf": "1"},
        "requests": {"nvidia.com/gpu": "2", "rdma/hca": "1", "a/vf": "1"},
    }
    assert parts.worker_resources(parse(good()), "prefill") == {}
