"""PURE: Whether NetworkAttachmentDefinitions give workers the devices that they ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.desired.attachments import (
    DEVICE_PLUGINS,
    NETWORKS_ANNOTATION,
    RDMA_PLUGIN,
    RESOURCE_ANNOTATION,
    STATUS_ANNOTATION,
)
from disagg_operator.kube.resources import annotations_of, name_of
from disagg_operator.vocabulary import Obj
from disagg_wire.fabric import RAILS_INCOMPLETE

ATTACHMENT_INVALID = "AttachmentInvalid"
RESOURCE_MISMATCH = "ResourceMismatch"
RDMA_CHAIN_MISSING = "RdmaChainMissing"
# These have no RDMA device of their own that could be moved into a pod.
_WITHOUT_DEVICE = ("macvlan", "ipvlan", "ipoib", "bridge")
_VIRTUAL_FUNCTION = ("sriov", "ib-sriov")
# These change the interface that a plugin before them has made.
_CHANGE_AN_INTERFACE = ("tuning", "bandwidth", "sbr", "vrf", "portmap", "firewall", "route-override")
_MOST_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with the attachments, as a reason and a message."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Attached:
    """An entry of the annotation that Multus reads."""

    where: tuple[str, str]
    """Namespace and name of the NetworkAttachmentDefinition."""
    interface: str


def attached_of(pod: Obj, namespace: str) -> tuple[Attached, ...]:
    """Return the attachments that a pod, or a template of pods, asks for."""
    return tuple(
        Attached((str(e.get("namespace") or namespace), str(e.get("name"))), str(e.get("interface") or ""))
        for e in _entries(annotations_of(pod).get(NETWORKS_ANNOTATION))
    )


def _entries(text: str | None) -> list[dict[str, Any]]:
    try:
        found = json.loads(text or "[]")
    except (ValueError, RecursionError):
        return []
    return [e for e in found if isinstance(e, dict)] if isinstance(found, list) else []


def plugins_of(nad: Obj) -> list[dict[str, Any]]:
    """Return the plugins of a NetworkAttachmentDefinition; none if it is configured on the nodes.

    Raises ValueError if the configuration can't be read.
    """
    text = (nad.get("spec") or {}).get("config")
    if not text:
        return []
    try:
        config = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"spec.config is no JSON: {str(error)[:_MOST_SHOWN]}") from None
    if not isinstance(config, dict):
        raise ValueError("spec.config is no JSON object")
    plugins = config.get("plugins", [config])
    if not isinstance(plugins, list) or not plugins:
        raise ValueError("spec.config has no plugins")
    for plugin in plugins:
        if not isinstance(plugin, dict) or not isinstance(plugin.get("type"), str):
            raise ValueError("spec.config: a plugin has no type")
    return plugins


def unreadable(nads: Mapping[tuple[str, str], Obj]) -> Iterator[Flaw]:
    """Yield the attachments that no pod could ever get."""
    for where, nad in nads.items():
        try:
            types = [plugin["type"] for plugin in plugins_of(nad)]
        except ValueError as error:
            yield Flaw(ATTACHMENT_INVALID, f"{'/'.join(where)}: {error}")
            continue
        if types[:1] == [RDMA_PLUGIN]:
            words = "the rdma plugin comes first, and moves the device of the interface that another has brought"
            yield Flaw(ATTACHMENT_INVALID, f"{'/'.join(where)}: {words}")
        elif types and types[0] in _CHANGE_AN_INTERFACE:
            words = f"the plugin {types[0]} comes first, and changes the interface that another has made"
            yield Flaw(ATTACHMENT_INVALID, f"{'/'.join(where)}: {words}")
        elif types.count(RDMA_PLUGIN) > 1:
            words = "the rdma plugin is chained twice, and finds no device the second time"
            yield Flaw(ATTACHMENT_INVALID, f"{'/'.join(where)}: {words}")
        elif RDMA_PLUGIN in types and types[0] in _WITHOUT_DEVICE:
            words = f"the rdma plugin is chained to {types[0]}, which brings no device that it could move"
            yield Flaw(ATTACHMENT_INVALID, f"{'/'.join(where)}: {words}")


def mismatched(
    nads: Mapping[tuple[str, str], Obj], links: Sequence[Attached], devices: Mapping[str, int]
) -> Iterator[Flaw]:
    """Yield what the attachments of a worker lack for its RDMA devices.

    `devices` are the extended resources of its network, of which an attachment takes those that its
    annotation names.
    """
    entries: dict[str, int] = {}
    for link in links:
        nad = nads.get(link.where)
        resource = "" if nad is None else annotations_of(nad).get(RESOURCE_ANNOTATION, "")
        try:
            types = [] if nad is None else [plugin["type"] for plugin in plugins_of(nad)]
        except ValueError:
            continue
        if resource:
            entries[resource] = entries.get(resource, 0) + 1
        yield from _of_link("/".join(link.where), types, resource, devices)
    for resource, count in entries.items():
        if resource in devices and devices[resource] < count:
            words = f"{count} attachments take a device of {resource}, and a worker asks for {devices[resource]}"
            yield Flaw(RESOURCE_MISMATCH, words)
        elif resource in devices and devices[resource] > count:
            words = f"a worker asks for {devices[resource]} {resource}, and its attachments take {count} into the pod"
            yield Flaw(RAILS_INCOMPLETE, words)


def _of_link(where: str, types: Sequence[str], resource: str, devices: Mapping[str, int]) -> Iterator[Flaw]:
    if resource and devices and resource not in devices:
        asked = ", ".join(devices)
        words = f"its annotation {RESOURCE_ANNOTATION} is {resource}, and workers ask for {asked}"
        yield Flaw(RESOURCE_MISMATCH, f"{where}: {words}")
    elif types and types[0] in _VIRTUAL_FUNCTION and not resource:
        words = f"{types[0]} needs the annotation {RESOURCE_ANNOTATION}, by which Multus finds the device"
        yield Flaw(RESOURCE_MISMATCH, f"{where}: {words}")
    elif resource in devices and types and types[0] in DEVICE_PLUGINS and RDMA_PLUGIN not in types:
        words = f"{types[0]} brings the interface of {resource} alone: chain the plugin rdma"
        yield Flaw(RDMA_CHAIN_MISSING, f"{where}: {words}")


def changed_at(nad: Obj) -> str:
    """Return when somebody has last changed an attachment; empty if it is not known.

    Pods keep what they were attached to before.
    """
    return max((str(entry.get("time") or "") for entry in nad["metadata"].get("managedFields") or ()), default="")


def attached_at(pod: Obj) -> str:
    """Return when a pod got its network, or else when it was made; empty if it is not known."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodReadyToStartContainers" and condition.get("status") == "True":
            return str(condition.get("lastTransitionTime") or "")
    return str(pod["metadata"].get("creationTimestamp") or "")


def incomplete(pods: Sequence[Obj], namespace: str) -> str:
    """Return which pod got fewer interfaces from Multus than it asks for, or an empty text."""
    for pod in pods:
        text = annotations_of(pod).get(STATUS_ANNOTATION)
        wanted = [link.interface for link in attached_of(pod, namespace)]
        there = {str(entry.get("interface")) for entry in _entries(text)}
        missing = [name for name in wanted if name and name not in there]
        if text is not None and missing:
            return f"{name_of(pod)} has {len(wanted) - len(missing)} of {len(wanted)} interfaces: no {missing[0]}"
    return ""
