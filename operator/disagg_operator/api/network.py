"""PURE: The models of spec.kvTransfer: the transport of the KV cache, and its network."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from disagg_operator.api.base import DnsLabel, DnsName, Free, Model, ResourceName
from disagg_operator.api.expressions import differ, field, one_of, present
from disagg_operator.api.rules import Rule

_NOT_RDMA = ~present("transport") | differ(field("transport"), "rdma")
_INTERFACES_OF_PODS = ("eth0", "lo")
_IS_VIRTUAL_FUNCTION = one_of(field("type"), ["sriov", "ib-sriov"])


class AttachmentRef(Model):
    """An existing NetworkAttachmentDefinition."""

    name: DnsName = Field(description="Its name.")
    namespace: DnsLabel | None = Field(None, description="Its namespace. Default: the resource's own.")


class Attachment(Model):
    """A network to create: the operator makes the NetworkAttachmentDefinition and owns it."""

    rules = (
        Rule(
            message="master is required for macvlan, ipvlan and host-device",
            condition=_IS_VIRTUAL_FUNCTION | present("master"),
            field="master",
        ),
        Rule(
            message="resourceName is required for sriov and ib-sriov",
            condition=~_IS_VIRTUAL_FUNCTION | present("resourceName"),
            field="resourceName",
        ),
        Rule(
            message="set either subnet or ipam: without an address no KV can be sent",
            condition=differ(present("subnet"), present("ipam")),
            field="subnet",
        ),
    )
    type: Literal["macvlan", "ipvlan", "host-device", "sriov", "ib-sriov"] = Field(description="CNI plugin.")
    master: str | None = Field(
        None,
        min_length=1,
        max_length=15,
        pattern=r"^[^/\s]+$",
        description="Host interface of macvlan, ipvlan and host-device.",
    )
    mtu: int | None = Field(None, ge=576, le=65535, description="MTU of the interface.")
    resource_name: ResourceName | None = Field(
        None,
        description="Device plugin resource of the virtual functions (sriov, ib-sriov).",
    )
    subnet: str | None = Field(
        None,
        max_length=64,
        pattern=r"^[0-9a-fA-F.:]+/[0-9]{1,3}$",
        description="Addresses from this subnet by host-local, which counts on each node alone: for one node. For "
        "more, use ipam.",
    )
    ipam: Free | None = Field(
        None,
        description="IPAM section as the plugin takes it, such as {type: whereabouts, range: 192.168.100.0/22}, "
        "instead of subnet.",
    )

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the broken rules, and a subnet that is none."""
        yield from super().broken()
        try:
            if self.subnet is not None:
                ipaddress.ip_network(self.subnet, strict=False)
        except ValueError:
            yield "subnet", f"{self.subnet} is no subnet"


class RdmaResource(Model):
    """The RDMA devices that each worker asks for."""

    name: ResourceName = Field(description="Extended resource, such as rdma/hca_shared_devices_a.")
    quantity: int = Field(1, ge=1, le=64, description="How many.")
    per: Literal["Worker", "Accelerator"] = Field(
        "Worker",
        description="Of what there are so many. Accelerator: of each GPU of a worker, such as a NIC for every GPU.",
    )

    def devices(self, accelerators: int) -> int:
        """Return how many devices a worker asks for; without accelerators as many as with one."""
        return self.quantity * (max(1, accelerators) if self.per == "Accelerator" else 1)


class NetworkSpec(Model):
    """The second network of the workers."""

    rules = (
        Rule(
            message="set either attachmentRef or attachment",
            condition=differ(present("attachmentRef"), present("attachment")),
            field="attachment",
        ),
    )
    attachment_ref: AttachmentRef | None = Field(None, description="Use an existing NetworkAttachmentDefinition.")
    attachment: Attachment | None = Field(None, description="Create a NetworkAttachmentDefinition.")
    interface: str = Field(
        "net1",
        min_length=1,
        max_length=15,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Its name inside the pods.",
    )
    rdma_resource: RdmaResource | None = Field(None, description="The RDMA devices that each worker asks for.")

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the broken rules, and the name of an interface that every pod has."""
        yield from super().broken()
        if self.interface in _INTERFACES_OF_PODS:
            yield "interface", f"{self.interface} is an interface of every pod: the second network needs its own name"


class KvTransferSpec(Model):
    """The transport and the network of the KV cache."""

    rules = (
        Rule(
            message="transport rdma needs network.rdmaResource",
            condition=_NOT_RDMA | present("network") & present("network.rdmaResource"),
            field="network",
        ),
    )
    transport: Literal["auto", "rdma", "nvlink", "shm", "tcp"] = Field(
        "auto",
        description="What is preferred; auto: the best that both workers of a pair have. The condition KVTransferReady "
        "tells what is used. All but tcp need NIXL in the image of builtin workers. rdma adds the capability IPC_LOCK, "
        "which only the Pod Security level privileged admits.",
    )
    fallback: Literal["Forbid", "Warn"] | None = Field(
        None,
        description="When workers use another transport than declared: Forbid: not ready; Warn: Degraded. Default: "
        "Forbid for rdma.",
    )
    integrity: Literal["mac", "crc32c"] | None = Field(
        None,
        description="The check of the KV on its way between builtin workers. mac: nobody without the cluster key can "
        "change it; crc32c: damage is noticed, for a network that nobody else reaches. Default: mac.",
    )
    network: NetworkSpec | None = Field(None, description="The second network. Default: the pod network.")

    @property
    def forbids_fallback(self) -> bool:
        """Whether a fallback to another transport makes the deployment not ready."""
        return (self.fallback or ("Forbid" if self.transport == "rdma" else "Warn")) == "Forbid"
