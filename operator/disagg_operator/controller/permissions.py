"""PURE: What a resource asks for and its namespace may not have, or no resource may.

It applies the policy of the operator's owner to the images, networks and Prometheus of a resource
and to its podTemplates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.namespace_policy import NamespacePolicy, Permission
from disagg_operator.api.network import AttachmentRef
from disagg_operator.api.reserved import reserved_environment
from disagg_operator.api.violation import Violation
from disagg_operator.desired import Images
from disagg_operator.desired.attachments import resources_of
from disagg_operator.desired.pod_templates import router_template, worker_template
from disagg_operator.desired.template_rules import NOT_PERMITTED, TemplateOwner, template_violations
from disagg_operator.kube.json_text import depth_of
from disagg_operator.vocabulary import Obj
from disagg_wire.environment import RouterVariable
from disagg_wire.labels import ROUTER
from disagg_wire.roles import ROLES

# Far more than any pod needs; every reconcile copies and compares it.
MAX_BYTES = 65_536
MAX_DEPTH = 48
# What IPAM plugins may be told. Others name files of the node, which a plugin reads or writes as
# root: host-local's dataDir and resolvConf, whereabouts' log_file and kubeconfig.
_IPAM = {
    "addresses", "dns", "enable_overlapping_ranges", "exclude", "gateway", "network_name", "poolName", "poolType",
    "range", "rangeEnd", "rangeStart", "range_end", "range_start", "ranges", "routes", "subnet", "type",
}  # fmt: skip
_HOST = re.compile(r"https?://(\[[^\]]*\]|[^/:]*)")


def too_deep(obj: Obj) -> Violation | None:
    """Return a part of a spec that is nested absurdly deep. Nothing else may touch it before."""
    spec = obj.get("spec")
    for name, part in spec.items() if isinstance(spec, dict) else ():
        if depth_of(part, MAX_DEPTH + 1) > MAX_DEPTH:
            deep = isinstance(part, dict) and depth_of(part.get("podTemplate"), MAX_DEPTH) >= MAX_DEPTH - 1
            path = f"spec.{name}.podTemplate" if deep else f"spec.{name}"
            return Violation(path, f"is nested more than {MAX_DEPTH} levels deep")
    return None


def unpermitted(dd: DisaggDeployment, policy: NamespacePolicy) -> Iterator[Violation]:
    """Yield what a resource may not have, with the field to blame."""
    spec = dd.spec
    for path, image in (("spec.engine.image", spec.engine.image), ("spec.router.image", spec.router.image)):
        if image is not None and not policy.allows_image(image):
            yield Violation(path, f"{image} is none of the images that this namespace may run", NOT_PERMITTED)
    yield from _network(dd, policy)
    prometheus, upstream, tracing = spec.observability.prometheus, spec.router.upstream, spec.observability.tracing
    for path, url, allowed in (
        ("spec.observability.prometheus.url", "" if prometheus is None else prometheus.url, policy.allows_prometheus),
        ("spec.router.upstream.url", "" if upstream is None else upstream.url, policy.allows_upstream),
        ("spec.observability.tracing.endpoint", "" if tracing is None else tracing.endpoint, policy.allows_tracing),
    ):
        host = _HOST.match(url)
        if host is not None and not allowed(host[1]):
            yield Violation(path, f"{host[1]} is none of the hosts that this namespace may have asked", NOT_PERMITTED)
    for role in (*ROLES, ROUTER):
        patch = spec.router.pod_template if role == ROUTER else spec.pool(role).pod_template
        if patch is not None:
            path = f"spec.{role}.podTemplate"
            if len(json.dumps(patch.as_patch())) > MAX_BYTES:
                yield Violation(path, f"has more than {MAX_BYTES} bytes")
            yield from template_violations(
                patch.as_patch(), path, router_owner(dd) if role == ROUTER else owner_of(dd, role), policy
            )


def _network(dd: DisaggDeployment, policy: NamespacePolicy) -> Iterator[Violation]:
    network, path = dd.spec.kv_transfer.network, "spec.kvTransfer.network"
    if network is None:
        return
    references: list[tuple[str, AttachmentRef]] = []
    references += [(f"{path}.rails[{index}]", rail) for index, rail in enumerate(network.rails)]
    references += [] if network.attachment_ref is None else [(f"{path}.attachmentRef", network.attachment_ref)]
    for place, reference in references:
        namespace = reference.namespace
        if namespace not in (None, dd.metadata.namespace) and not policy.allows_attachment(namespace, reference.name):
            words = f"{namespace}/{reference.name} is none of the networks that this namespace may use"
            yield Violation(f"{place}.namespace", words, NOT_PERMITTED)
    if network.rdma_mode == "Root" and not policy.allows(Permission.PRIVILEGED):
        words = f"runs workers as root with IPC_LOCK (this namespace lacks the permission {Permission.PRIVILEGED})"
        yield Violation(f"{path}.rdmaMode", words, NOT_PERMITTED)
    attachment = network.attachment
    if attachment is None or policy.allows(Permission.HOST_INTERFACES):
        return
    lacks = f"(this namespace lacks the permission {Permission.HOST_INTERFACES})"
    if attachment.type == "host-device" and attachment.master is not None:
        words = f"host-device takes an interface away from the node {lacks}"
        yield Violation(f"{path}.attachment.type", words, NOT_PERMITTED)
    for name in sorted((attachment.ipam or {}).keys() - _IPAM):
        words = f"is no field that a resource may set {lacks}"
        yield Violation(f"{path}.attachment.ipam.{name}", words, NOT_PERMITTED)


def owner_of(dd: DisaggDeployment, role: str) -> TemplateOwner:
    """Return what the operator generates for a pool, before its podTemplate is merged in."""
    pool = dd.spec.pool(role)
    bare = dd.spec.model_copy(update={role: pool.model_copy(update={"pod_template": None})})
    template, _ = worker_template(dd.model_copy(update={"spec": bare}), role, Images())
    engine, network = dd.spec.engine.known, dd.spec.kv_transfer.network
    devices = {pool.accelerator.resource_name} if pool.accelerator is not None and pool.accelerator.count else set()
    return TemplateOwner(
        template=template,
        grace_s=pool.drain.timeout_seconds,
        has_network=network is not None,
        devices=resources_of(network) | devices,
        variables=frozenset((*reserved_environment(), *engine.reserved)),
    )


def router_owner(dd: DisaggDeployment) -> TemplateOwner:
    """Return what the operator generates for the routers, before their podTemplate is merged in."""
    bare = dd.spec.model_copy(update={"router": dd.spec.router.model_copy(update={"pod_template": None})})
    template = router_template(dd.model_copy(update={"spec": bare}), Images())
    variables = frozenset(str(name) for name in RouterVariable)
    return TemplateOwner(template, 0, has_network=False, devices=frozenset(), variables=variables)
