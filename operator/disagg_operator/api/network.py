"""PURE: The models of spec.kvTransfer: the transport of the KV cache, and its network."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from disagg_operator.api.base import DnsLabel, DnsName, Free, LabelKey, Model, ResourceName
from disagg_operator.api.expressions import differ, field, filled, one_of, present
from disagg_operator.api.rules import Rule

_NOT_RDMA = ~present("transport") | differ(field("transport"), "rdma")
_INTERFACES_OF_PODS = ("eth0", "lo")
# Of a smaller one, host-local gives no address.
_SMALLEST_PREFIX = 30
_HAS_DEVICES = (
    present("network.rdmaResource")
    | filled("network.rails")
    | present("network.devicesBy") & ~differ(field("network.devicesBy"), "Claim")
)
_IS_VIRTUAL_FUNCTION = one_of(field("type"), ["sriov", "ib-sriov"])
_REFERENCE, _OWN, _RAILS = present("attachmentRef"), present("attachment"), filled("rails")
_ONE_OF_THREE = _REFERENCE & ~_OWN & ~_RAILS | ~_REFERENCE & _OWN & ~_RAILS | ~_REFERENCE & ~_OWN & _RAILS
_CLAIMED = present("devicesBy") & ~differ(field("devicesBy"), "Claim")
# The kernel's limit of an interface's name.
MOST_NAME_CHARS = 15


class AttachmentRef(Model):
    """An existing NetworkAttachmentDefinition."""

    name: DnsName = Field(description="Its name.")
    namespace: DnsLabel | None = Field(None, description="Its namespace. Default: the resource's own.")


class Rail(AttachmentRef):
    """The NetworkAttachmentDefinition of one rail of the fabric, and its devices."""

    resource_name: ResourceName = Field(
        description="Device plugin resource of the rail's RDMA devices, such as nvidia.com/rail0."
    )


class Attachment(Model):
    """A network to create: the operator makes the NetworkAttachmentDefinition and owns it."""

    rules = (
        Rule(
            message="master is required for macvlan and ipvlan",
            condition=~one_of(field("type"), ["macvlan", "ipvlan"]) | present("master"),
            field="master",
        ),
        Rule(
            message="master or resourceName is required for host-device",
            condition=differ(field("type"), "host-device") | present("master") | present("resourceName"),
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
        description="Device plugin resource of the virtual functions (sriov, ib-sriov), or of the device that "
        "host-device takes into the pod. If it is that of rdmaResource, the rdma plugin is chained.",
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
        """Yield the broken rules, and a subnet that gives workers no address of use."""
        yield from super().broken()
        try:
            found = None if self.subnet is None else ipaddress.ip_network(self.subnet, strict=False)
        except ValueError:
            yield "subnet", f"{self.subnet} is no subnet"
            return
        if isinstance(found, ipaddress.IPv6Network):
            yield "subnet", f"{self.subnet} has no IPv4 addresses, over which workers send KV"
        elif found is not None and found.prefixlen > _SMALLEST_PREFIX:
            yield "subnet", f"{self.subnet} is too small: host-local needs a /{_SMALLEST_PREFIX} or a larger one"


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
            message="set either attachmentRef or attachment, or rails",
            condition=_ONE_OF_THREE | _CLAIMED & ~_REFERENCE & ~_OWN & ~_RAILS,
            field="attachment",
        ),
        Rule(
            message="devicesBy Claim stands for rdmaResource and rails: leave them away",
            condition=~_CLAIMED | ~present("rdmaResource") & ~_RAILS,
            field="devicesBy",
        ),
        Rule(
            message="rails name their devices themselves: leave rdmaResource away",
            condition=~_RAILS | ~present("rdmaResource"),
            field="rdmaResource",
        ),
        Rule(
            message="rdmaMode Root is for RDMA: set rdmaResource or rails",
            condition=~present("rdmaMode")
            | differ(field("rdmaMode"), "Root")
            | present("rdmaResource")
            | _RAILS
            | _CLAIMED,
            field="rdmaMode",
        ),
    )
    attachment_ref: AttachmentRef | None = Field(
        None,
        description="Use an existing NetworkAttachmentDefinition, attached once for each RDMA device of a worker.",
    )
    attachment: Attachment | None = Field(
        None, description="Create a NetworkAttachmentDefinition, attached once for each RDMA device of a worker."
    )
    rails: list[Rail] = Field(
        [],
        max_length=16,
        description="Use existing NetworkAttachmentDefinitions, one of each rail. A worker gets one device of as many "
        "rails as it has GPUs, in this order; without GPUs, of all.",
    )
    interface: str = Field(
        "net1",
        min_length=1,
        max_length=MOST_NAME_CHARS,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="Its name inside the pods. Of several attachments the first; the others are counted on from it.",
    )
    rdma_resource: RdmaResource | None = Field(None, description="The RDMA devices that each worker asks for.")
    devices_by: Literal["Plugin", "Claim"] = Field(
        "Plugin",
        description="Where RDMA devices come from. Claim: from the deviceClaim of each pool; without an attachment, "
        "the driver of the claim also makes the interface.",
    )
    rdma_mode: Literal["Unprivileged", "Root"] = Field(
        "Unprivileged",
        description="How workers may lock memory for RDMA. Unprivileged: within the memlock limit of the node's "
        "container runtime. Root: as root with the capability IPC_LOCK, which the namespace must permit.",
    )

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the broken rules, and the name of an interface that every pod has."""
        yield from super().broken()
        if self.interface in _INTERFACES_OF_PODS:
            yield "interface", f"{self.interface} is an interface of every pod: the second network needs its own name"

    @property
    def claims_devices(self) -> bool:
        """Whether the RDMA devices come by the device claims of the pools."""
        return self.devices_by == "Claim"

    @property
    def has_devices(self) -> bool:
        """Whether workers ask for RDMA devices."""
        return self.rdma_resource is not None or bool(self.rails) or self.claims_devices


class CoLocation(Model):
    """The wish for decode workers near prefill workers."""

    topology_key: LabelKey = Field(
        description="Node label whose value decode workers share with a prefill worker, such as that of a rack or of a "
        "leaf of the fabric."
    )
    mode: Literal["Preferred", "Required"] = Field(
        "Preferred",
        description="Preferred: where the scheduler can. Required: a decode worker waits for room beside prefill.",
    )


class KvTransferSpec(Model):
    """The transport and the network of the KV cache."""

    rules = (
        Rule(
            message="transport rdma needs network.rdmaResource or network.rails, or network.devicesBy Claim",
            condition=_NOT_RDMA | present("network") & _HAS_DEVICES,
            field="network",
        ),
    )
    transport: Literal["auto", "rdma", "nvlink", "shm", "tcp"] = Field(
        "auto",
        description="What is preferred; auto: the best that both workers of a pair have. The condition KVTransferReady "
        "tells what is used. All but tcp need NIXL in the image of builtin workers.",
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
    co_location: CoLocation | None = Field(
        None, description="Schedule decode workers near prefill workers. Default: wherever there is room."
    )

    @property
    def may_use_rdma(self) -> bool:
        """Whether workers ask for RDMA devices, and may move KV by them."""
        return self.transport != "tcp" and self.network is not None and self.network.has_devices

    @property
    def forbids_fallback(self) -> bool:
        """Whether a fallback to another transport makes the deployment not ready."""
        return (self.fallback or ("Forbid" if self.transport == "rdma" else "Warn")) == "Forbid"
