"""Tests of whether NetworkAttachmentDefinitions give workers their devices."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.status.attachment_check import (
    Attached,
    attached_at,
    attached_of,
    changed_at,
    incomplete,
    mismatched,
    unreadable,
)

WHERE = ("nets", "fabric")
VF = "nvidia.com/vf"


def nad(*types: str, resource: str = "", config: Any = None) -> dict[str, Any]:
    plugins = [{"type": t} for t in types]
    annotations = {"k8s.v1.cni.cncf.io/resourceName": resource} if resource else {}
    text = json.dumps({"name": "kv", "plugins": plugins}) if config is None else config
    return {"metadata": {"name": "fabric", "annotations": annotations}, "spec": {"config": text}}


def links(count: int = 1) -> list[Attached]:
    return [Attached(WHERE, f"net{n}") for n in range(1, count + 1)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "spec.config is no JSON"),
        ("[]", "spec.config is no JSON object"),
        ('{"plugins": []}', "spec.config has no plugins"),
        ('{"plugins": {}}', "spec.config has no plugins"),
        ('{"name": "x"}', "spec.config: a plugin has no type"),
        ('{"plugins": [{"type": "macvlan"}, 7]}', "spec.config: a plugin has no type"),
        (7, "spec.config is no JSON"),
    ],
)
def test_a_configuration_that_no_pod_could_use_is_invalid(config: Any, words: str) -> None:
    (flaw,) = unreadable({WHERE: nad(config=config)})
    assert (flaw.reason, flaw.message.startswith(f"nets/fabric: {words}")) == ("AttachmentInvalid", True)
    assert list(mismatched({WHERE: nad(config=config)}, links(), {VF: 1})) == []


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    assert all(flaw.message.startswith("nets/fabric: ") for flaw in unreadable({WHERE: nad(config=text)}))


def test_a_configuration_on_the_nodes_is_not_judged() -> None:
    assert list(unreadable({WHERE: {"metadata": {"name": "fabric"}}})) == []


def test_the_rdma_plugin_has_nothing_to_move_behind_a_macvlan() -> None:
    (flaw,) = unreadable({WHERE: nad("macvlan", "rdma")})
    assert flaw.reason == "AttachmentInvalid"
    assert "rdma plugin is chained to macvlan" in flaw.message
    assert list(unreadable({WHERE: nad("macvlan", "tuning")})) == []


@pytest.mark.parametrize(
    ("types", "words"),
    [
        (("sriov", "rdma"), ""),
        (("sriov", "rdma", "tuning"), ""),  # It need not be the last one.
        (("sriov", "tuning", "rdma", "sbr"), ""),
        (("tuning", "sriov", "rdma"), "the plugin tuning comes first"),
        (("rdma", "sriov"), "the rdma plugin comes first"),
        (("sriov", "rdma", "rdma"), "the rdma plugin is chained twice"),
    ],
)
def test_the_plugins_must_come_in_an_order_that_works(types: tuple[str, ...], words: str) -> None:
    flaws = list(unreadable({WHERE: nad(*types, resource=VF)}))
    assert [flaw.reason for flaw in flaws] == (["AttachmentInvalid"] if words else [])
    assert all(words in flaw.message for flaw in flaws)
    assert words or list(mismatched({WHERE: nad(*types, resource=VF)}, links(), {VF: 1})) == []


def test_a_pod_that_waited_for_its_network_is_as_old_as_that() -> None:
    waited = pod(None) | {"status": {"conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-12-01T14:00:00Z"},
        {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2026-12-01T15:00:00Z"},
    ]}}  # fmt: skip
    waited["metadata"]["creationTimestamp"] = "2026-12-01T14:00:00Z"
    assert attached_at(waited) == "2026-12-01T15:00:00Z"
    waited["status"]["conditions"][1]["status"] = "False"
    assert attached_at(waited) == "2026-12-01T14:00:00Z"
    assert attached_at(pod(None)) == ""


def test_when_a_network_was_changed_is_told_by_the_last_of_its_managers() -> None:
    found = nad("sriov")
    assert changed_at(found) == ""
    times = ["2026-12-01T15:00:00Z", "2026-12-01T16:00:00Z", None]
    found["metadata"]["managedFields"] = [{"manager": "m", "time": time} for time in times]
    assert changed_at(found) == "2026-12-01T16:00:00Z"


@pytest.mark.parametrize(
    ("found", "count", "devices", "reason", "words"),
    [
        (nad("sriov", "rdma", resource=VF), 8, {VF: 8}, None, ""),
        (nad("macvlan"), 1, {"rdma/hca": 1}, None, ""),
        (nad("sriov", resource=VF), 1, {}, None, ""),  # a webhook may ask for it
        (nad("sriov", resource=VF), 1, {VF: 1}, "RdmaChainMissing", "chain the plugin rdma"),
        (nad("ib-sriov", "tuning", resource=VF), 1, {VF: 1}, "RdmaChainMissing", "ib-sriov brings the interface"),
        (nad("host-device", resource=VF), 1, {VF: 1}, "RdmaChainMissing", "host-device"),
        (nad("sriov", "rdma", resource="a/b"), 1, {VF: 1}, "ResourceMismatch", f"is a/b, and workers ask for {VF}"),
        (nad("sriov", "rdma"), 1, {VF: 1}, "ResourceMismatch", "sriov needs the annotation"),
        # As release 0.1.0 rendered it.
        (nad("sriov", "rdma", resource=VF), 1, {VF: 8}, "RailsIncomplete", "attachments take 1 into the pod"),
        (nad("sriov", "rdma", resource=VF), 8, {VF: 1}, "ResourceMismatch", f"8 attachments take a device of {VF}"),
    ],
)
def test_an_attachment_must_bring_the_device_that_is_asked_for(
    found: dict[str, Any], count: int, devices: dict[str, int], reason: str | None, words: str
) -> None:
    flaws = list(mismatched({WHERE: found}, links(count), devices))
    assert {flaw.reason for flaw in flaws} == ({reason} if reason else set())
    assert all(words in flaw.message for flaw in flaws)


def test_an_attachment_that_is_not_known_is_not_judged() -> None:
    assert list(mismatched({}, links(), {VF: 1})) == []


def pod(status: Any, *asked: str) -> dict[str, Any]:
    networks = [{"name": "fabric", "namespace": "nets", "interface": name} for name in asked]
    annotations = {"k8s.v1.cni.cncf.io/networks": json.dumps(networks)}
    if status is not None:
        annotations["k8s.v1.cni.cncf.io/network-status"] = status
    return {"metadata": {"name": "chat-decode-1", "annotations": annotations}}


def test_a_pod_with_fewer_interfaces_than_it_asked_for_is_named() -> None:
    there = json.dumps([{"name": "cbr0", "default": True}, {"name": "nets/fabric", "interface": "net1"}])
    assert incomplete([pod(there, "net1")], "default") == ""
    assert incomplete([pod(None, "net1", "net2")], "default") == ""  # Multus has not told yet
    words = "chat-decode-1 has 1 of 2 interfaces: no net2"
    assert incomplete([pod(there, "net1"), pod(there, "net1", "net2")], "default") == words
    assert incomplete([pod("no json", "net1")], "default") == "chat-decode-1 has 0 of 1 interfaces: no net1"


def test_the_annotation_is_read_as_multus_reads_it() -> None:
    template = pod(None, "net1")
    assert attached_of(template, "default") == (Attached(WHERE, "net1"),)
    plain = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": '[{"name": "x"}, 7]'}}}
    assert attached_of(plain, "default") == (Attached(("default", "x"), ""),)
    assert attached_of({"metadata": {"annotations": {"k8s.v1.cni.cncf.io/networks": "{}"}}}, "default") == ()
    assert attached_of({}, "default") == ()
