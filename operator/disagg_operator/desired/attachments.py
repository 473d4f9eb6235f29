"""PURE: The attachments of a worker to its second network, the devices for them, and their NAD.

Each RDMA device comes with an attachment of its own: Multus moves one device into the pod for each
entry of its annotation. A NAD is a NetworkAttachmentDefinition.
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.network import Attachment, NetworkSpec
from disagg_operator.desired import names
from disagg_operator.desired.renderer import NETWORK_OF_EACH_DEVICE, RDMA_CHAIN, SUBNETS_FIRST_ADDRESS
from disagg_operator.performance.declared import gpus_of
from disagg_operator.vocabulary import Obj
from disagg_wire.rails import rail_interfaces

NETWORKS_ANNOTATION = "k8s.v1.cni.cncf.io/networks"
STATUS_ANNOTATION = "k8s.v1.cni.cncf.io/network-status"
RESOURCE_ANNOTATION = "k8s.v1.cni.cncf.io/resourceName"
RDMA_PLUGIN = "rdma"
# The plugins that take a device of a device plugin into the pod, and its RDMA device with it.
DEVICE_PLUGINS = ("sriov", "ib-sriov", "host-device")


@dataclass(frozen=True, slots=True)
class Link:
    """One attachment of a worker."""

    namespace: str
    """The namespace of its NAD."""
    name: str
    interface: str
    """The name of its interface inside the pod."""


def device_count(dd: DisaggDeployment, role: str) -> int:
    """Return how many RDMA devices a worker of a pool asks for."""
    network, pool = dd.spec.kv_transfer.network, dd.spec.pool(role)
    if network is None:
        return 0
    if network.claims_devices:
        return 0 if pool.device_claim is None else pool.device_claim.rdma_devices
    gpus = gpus_of(pool)
    if network.rails:
        return min(len(network.rails), gpus or len(network.rails))
    return 0 if network.rdma_resource is None else network.rdma_resource.devices(gpus)


def links_of(dd: DisaggDeployment, role: str, renderer: int) -> tuple[Link, ...]:
    """Return the attachments of a worker of a pool."""
    network, own = dd.spec.kv_transfer.network, dd.metadata.namespace
    if network is None:
        return ()
    count = max(1, device_count(dd, role)) if renderer >= NETWORK_OF_EACH_DEVICE else 1
    interfaces = rail_interfaces(network.interface, count)
    if network.rails:
        used = network.rails[:count]
        return tuple(Link(r.namespace or own, r.name, i) for r, i in zip(used, interfaces, strict=True))
    reference = network.attachment_ref
    if reference is None and network.attachment is None:
        return ()  # The driver of the claim makes the interface.
    name = reference.name if reference else names.network_name(dd.metadata.name)
    namespace = (reference.namespace if reference else None) or own
    return tuple(Link(namespace, name, interface) for interface in interfaces)


def networks_text(links: tuple[Link, ...]) -> str:
    """Return the value of the annotation that Multus reads."""
    entries = [{"name": link.name, "namespace": link.namespace, "interface": link.interface} for link in links]
    return json.dumps(entries)


def network_devices(dd: DisaggDeployment, role: str, renderer: int) -> dict[str, int]:
    """Return the extended resources of a worker's network, and how many of each it asks for."""
    network = dd.spec.kv_transfer.network
    out: dict[str, int] = {}
    if network is None:
        return out
    for rail in network.rails[: device_count(dd, role)]:
        out[rail.resource_name] = out.get(rail.resource_name, 0) + 1
    if network.rdma_resource is not None:
        out[network.rdma_resource.name] = device_count(dd, role)
    if network.attachment is not None and (name := network.attachment.resource_name):
        attached = len(links_of(dd, role, renderer))
        out[name] = max(attached, out.get(name, 0))  # it may be the RDMA device itself
    return out


def resources_of(network: NetworkSpec | None) -> frozenset[str]:
    """Return the extended resources that a network asks for in any pool."""
    if network is None:
        return frozenset()
    found = {rail.resource_name for rail in network.rails}
    found |= {network.rdma_resource.name} if network.rdma_resource is not None else set()
    if network.attachment is not None and network.attachment.resource_name:
        found.add(network.attachment.resource_name)
    return frozenset(found)


def _subnet(text: str, renderer: int) -> str:
    """Return a subnet by its first address, the only one by which host-local takes it."""
    return str(ipaddress.ip_network(text, strict=False)) if renderer >= SUBNETS_FIRST_ADDRESS else text


def attachment_config(dd: DisaggDeployment, network: NetworkSpec, attachment: Attachment, renderer: int) -> str:
    """Return the CNI configuration of the NAD that the operator makes."""
    plugin: dict[str, Any] = {"type": attachment.type}
    if attachment.type == "macvlan":
        plugin["mode"] = "bridge"
    if attachment.master:
        plugin["device" if attachment.type == "host-device" else "master"] = attachment.master
    if attachment.ipam is not None:
        plugin["ipam"] = attachment.ipam
    elif attachment.subnet:
        plugin["ipam"] = {"type": "host-local", "ranges": [[{"subnet": _subnet(attachment.subnet, renderer)}]]}
    chained: list[Obj] = []
    by_device = attachment.type in DEVICE_PLUGINS and renderer >= RDMA_CHAIN
    if attachment.mtu and by_device:
        # These plugins know no MTU themselves.
        chained.append({"type": "tuning", "mtu": attachment.mtu})
    elif attachment.mtu:
        plugin["mtu"] = attachment.mtu
    device = None if network.rdma_resource is None else network.rdma_resource.name
    if by_device and device is not None and device == attachment.resource_name:
        # Without it the pod gets the interface of the virtual function, but not its RDMA device.
        chained.append({"type": RDMA_PLUGIN})
    name = names.network_name(dd.metadata.name)
    if not chained:
        return json.dumps({"cniVersion": "0.3.1", "name": name, **plugin}, sort_keys=True)
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [plugin, *chained]}, sort_keys=True)
