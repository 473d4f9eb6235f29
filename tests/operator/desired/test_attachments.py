"""Tests of the attachments of workers, the devices for them, and the attachment that is created."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import DisaggDeployment, parse
from disagg_operator.api.v1alpha1 import read
from disagg_operator.desired import Images
from disagg_operator.desired.attachments import (
    Link,
    attachment_config,
    device_count,
    links_of,
    network_devices,
    networks_text,
    resources_of,
)
from disagg_operator.desired.pod_templates import worker_template
from disagg_operator.desired.renderer import CURRENT, FIRST

VF: dict[str, Any] = {
    "type": "sriov",
    "resourceName": "nvidia.com/vf",
    "ipam": {"type": "whereabouts", "range": "10.9.0.0/16"},
}
RAILS = [{"name": f"rail{n}", "namespace": "nets", "resourceName": f"nvidia.com/rail{n}"} for n in range(8)]


def deployment(network: dict[str, Any] | None, prefill: int = 0, decode: int = 0) -> DisaggDeployment:
    pools: dict[str, Any] = {
        role: {"accelerator": {"count": count}} if count else {}
        for role, count in (("prefill", prefill), ("decode", decode))
    }
    return read(good(**pools, kvTransfer={} if network is None else {"network": network}))


def test_a_worker_without_a_network_has_no_attachment_and_no_device() -> None:
    dd = deployment(None, 8)
    assert links_of(dd, "prefill", CURRENT) == ()
    assert network_devices(dd, "prefill", CURRENT) == {}
    assert device_count(dd, "prefill") == 0
    assert resources_of(None) == frozenset()


def test_each_virtual_function_has_an_attachment_of_its_own() -> None:
    """Eight devices with one attachment leave seven on the node."""
    network = {"attachment": VF, "rdmaResource": {"name": "nvidia.com/vf", "per": "Accelerator"}}
    dd = deployment(network, 8, 2)
    assert links_of(dd, "prefill", CURRENT) == tuple(Link("default", "chat-kv", f"net{n}") for n in range(1, 9))
    assert network_devices(dd, "prefill", CURRENT) == {"nvidia.com/vf": 8}
    assert [link.interface for link in links_of(dd, "decode", CURRENT)] == ["net1", "net2"]
    assert len(json.loads(networks_text(links_of(dd, "decode", CURRENT)))) == 2
    # As the first release rendered it.
    assert [link.interface for link in links_of(dd, "prefill", FIRST)] == ["net1"]
    assert network_devices(dd, "prefill", FIRST) == {"nvidia.com/vf": 8}


def test_virtual_functions_beside_shared_devices_are_asked_for_as_often() -> None:
    dd = deployment({"attachment": VF, "rdmaResource": {"name": "rdma/shared", "quantity": 2}})
    assert network_devices(dd, "decode", CURRENT) == {"rdma/shared": 2, "nvidia.com/vf": 2}
    assert network_devices(dd, "decode", FIRST) == {"rdma/shared": 2, "nvidia.com/vf": 1}
    assert resources_of(dd.spec.kv_transfer.network) == {"rdma/shared", "nvidia.com/vf"}


def test_a_referenced_attachment_is_taken_once_for_each_device() -> None:
    network = {"attachmentRef": {"name": "fabric", "namespace": "nets"}, "rdmaResource": {"name": "a/b", "quantity": 2}}
    assert links_of(deployment(network), "prefill", CURRENT) == (
        Link("nets", "fabric", "net1"), Link("nets", "fabric", "net2"),
    )  # fmt: skip


@pytest.mark.parametrize(("gpus", "count"), [(0, 8), (4, 4), (8, 8), (16, 8)])
def test_a_worker_gets_a_rail_for_each_of_its_gpus(gpus: int, count: int) -> None:
    dd = deployment({"rails": RAILS}, gpus, gpus)
    assert network_devices(dd, "prefill", CURRENT) == {f"nvidia.com/rail{n}": 1 for n in range(count)}
    links = links_of(dd, "prefill", CURRENT)
    assert links == tuple(Link("nets", f"rail{n}", f"net{n + 1}") for n in range(count))
    assert resources_of(dd.spec.kv_transfer.network) == {f"nvidia.com/rail{n}" for n in range(8)}


def config(renderer: int = CURRENT, rdma: str | None = None, **attachment: Any) -> dict[str, Any]:
    network: dict[str, Any] = {"attachment": attachment}
    if rdma:
        network["rdmaResource"] = {"name": rdma}
    dd = deployment(network)
    spec = dd.spec.kv_transfer.network
    assert spec is not None
    assert spec.attachment is not None
    found: dict[str, Any] = json.loads(attachment_config(dd, spec, spec.attachment, renderer))
    return found


def test_the_rdma_plugin_is_chained_where_the_virtual_function_is_the_device() -> None:
    """Without it, a pod of a node in the exclusive mode gets an interface and no RDMA device."""
    found = config(rdma="nvidia.com/vf", **VF, mtu=9000)
    assert found["cniVersion"] == "1.0.0"
    assert found["plugins"] == [
        {"type": "sriov", "ipam": VF["ipam"]}, {"type": "tuning", "mtu": 9000}, {"type": "rdma"},
    ]  # fmt: skip
    assert config(rdma="nvidia.com/vf", **VF)["plugins"][1:] == [{"type": "rdma"}]
    assert config(rdma="nvidia.com/vf", **VF | {"type": "ib-sriov"})["plugins"][1:] == [{"type": "rdma"}]


def test_a_pod_template_may_add_claims_to_that_of_the_spec() -> None:
    more: Any = {"name": "more", "resourceClaimName": "x"}
    container = {"name": "main", "resources": {"claims": [{"name": "more"}]}}
    pool: Any = {
        "accelerator": {"count": 2},
        "deviceClaim": {"templateName": "pairs", "rdmaDevices": 2},
        "podTemplate": {"spec": {"resourceClaims": [more], "containers": [container]}},
    }
    network = {"network": {"devicesBy": "Claim"}}
    dd = parse(good(decode=pool, prefill=pool, kvTransfer=network))
    pod = worker_template(dd, "decode", Images())[0]["spec"]
    assert pod["resourceClaims"] == [{"name": "devices", "resourceClaimTemplateName": "pairs"}, more]
    assert pod["containers"][0]["resources"]["claims"] == [{"name": "devices"}, {"name": "more"}]
    assert "nvidia.com/gpu" not in pod["containers"][0]["resources"]["requests"]
    assert (device_count(dd, "decode"), links_of(dd, "decode", CURRENT)) == (2, ())


def test_a_subnet_is_told_by_its_first_address() -> None:
    """By another one, host-local refuses it, and no pod gets an interface."""
    macvlan: dict[str, Any] = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.7/24"}
    assert config(**macvlan)["ipam"]["ranges"] == [[{"subnet": "10.9.0.0/24"}]]
    assert config(1, **macvlan)["ipam"]["ranges"] == [[{"subnet": "10.9.0.7/24"}]]


@pytest.mark.parametrize(
    ("facts", "plugin"),
    [
        # The device of another plugin is shared, and stays where it is.
        ({"rdma": "rdma/shared", **VF}, {"type": "sriov", "ipam": VF["ipam"]}),
        (VF, {"type": "sriov", "ipam": VF["ipam"]}),
        # As the first release rendered it.
        ({"renderer": FIRST, "rdma": "nvidia.com/vf", **VF, "mtu": 9000},
         {"type": "sriov", "ipam": VF["ipam"], "mtu": 9000}),
        (
            {"rdma": "rdma/hca", "type": "macvlan", "master": "eth1", "mtu": 9000, "subnet": "10.9.0.0/24"},
            {"type": "macvlan", "mode": "bridge", "master": "eth1", "mtu": 9000,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}},
        ),
        (
            {"type": "host-device", "master": "eth1", "ipam": {"type": "static"}},
            {"type": "host-device", "device": "eth1", "ipam": {"type": "static"}},
        ),
    ],
)  # fmt: skip
def test_a_single_plugin_is_not_chained(facts: dict[str, Any], plugin: dict[str, Any]) -> None:
    assert config(**facts) == {"cniVersion": "0.3.1", "name": "chat-kv", **plugin}


def test_a_device_of_a_plugin_needs_no_master() -> None:
    found = config(rdma="nvidia.com/hostdev", type="host-device", resourceName="nvidia.com/hostdev", ipam={})
    assert found["plugins"] == [{"type": "host-device", "ipam": {}}, {"type": "rdma"}]
