"""PURE: What the authors of DisaggDeployments may do, by namespace, as the operator's owner says.

Whoever creates a DisaggDeployment creates pods. By default these may do what any restricted pod
may; each further permission is granted by a value of the chart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from disagg_wire.refused_addresses import refused_host

EVERY_NAMESPACE = "*"


class Permission(StrEnum):
    """A permission that nobody has unless it is granted."""

    HOST_NAMESPACES = "HostNamespaces"
    HOST_PATH = "HostPath"
    HOST_INTERFACES = "HostInterfaces"
    PRIVILEGED = "Privileged"
    SERVICE_ACCOUNTS = "ServiceAccounts"
    OPERATOR_FIELDS = "OperatorFields"
    UNLISTED_FIELDS = "UnlistedFields"


class NamespacePolicy(BaseModel):
    """What the resources of a namespace may do."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    allow: tuple[Permission, ...] = Field((), description="What a podTemplate or a network may ask for in addition.")
    images: tuple[str, ...] = Field(("*",), description="Patterns of the images that may run.")
    network_attachments: tuple[str, ...] = Field(
        (), description="Patterns of NAMESPACE/NAME: NetworkAttachmentDefinitions of other namespaces that may be used."
    )
    annotations: tuple[str, ...] = Field(("*",), description="Patterns of the annotations that a podTemplate may set.")
    prometheus_hosts: tuple[str, ...] = Field(
        ("*",), description="Patterns of the hosts that may be asked for metrics."
    )
    upstream_hosts: tuple[str, ...] = Field(
        ("*",), description="Patterns of the hosts to which routers may send requests, with the keys of their clients."
    )
    tracing_hosts: tuple[str, ...] = Field(("*",), description="Patterns of the hosts that may get traces of routers.")

    def allows(self, permission: Permission) -> bool:
        """Return whether a permission is granted."""
        return permission in self.allow

    def allows_image(self, image: str) -> bool:
        """Return whether an image may run."""
        return _matches(image, self.images)

    def allows_attachment(self, namespace: str, name: str) -> bool:
        """Return whether a NetworkAttachmentDefinition of another namespace may be used."""
        return _matches(f"{namespace}/{name}", self.network_attachments)

    def allows_annotation(self, name: str) -> bool:
        """Return whether a podTemplate may set an annotation, by its name."""
        return _matches(name, self.annotations)

    def allows_prometheus(self, host: str) -> bool:
        """Return whether a host may be asked for metrics."""
        return _matches(host.lower(), [pattern.lower() for pattern in self.prometheus_hosts])

    def allows_upstream(self, host: str) -> bool:
        """Return whether routers may send requests to a host.

        A link-local address is allowed only by a pattern that names it, or begins as it does.
        """
        return _matches_outside(host, self.upstream_hosts)

    def allows_tracing(self, host: str) -> bool:
        """Return whether routers may send traces to a host, with the rule of `allows_upstream`."""
        return _matches_outside(host, self.tracing_hosts)


class Policy(BaseModel):
    """The policies of all namespaces. The entry `*` is for those without an entry of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespaces: dict[str, NamespacePolicy] = {}

    def __str__(self) -> str:
        return self.model_dump_json(by_alias=True, exclude_defaults=True)

    def of(self, namespace: str) -> NamespacePolicy:
        """Return the policy of a namespace."""
        found = self.namespaces.get(namespace) or self.namespaces.get(EVERY_NAMESPACE)
        return NamespacePolicy() if found is None else found


def _matches_outside(host: str, allowed: Sequence[str]) -> bool:
    """Return whether a pattern matches a host, and names it if it is a link-local address."""
    patterns = [pattern.lower() for pattern in allowed]
    if refused_host(host):
        patterns = [pattern for pattern in patterns if not pattern.startswith("*")]
    return _matches(host.lower(), patterns)


def _matches(text: str, patterns: Sequence[str]) -> bool:
    """Return whether a text matches a pattern, in which `*` stands for any characters."""
    return any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text) for pattern in patterns)
