"""PURE: The objects that a resource refers to, and what is wrong if one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.violation import Violation
from disagg_operator.desired.attachments import RESOURCE_ANNOTATION
from disagg_operator.desired.names import network_name
from disagg_operator.kube.resources import (
    CONFIG_MAP,
    NETWORK_ATTACHMENT,
    PERSISTENT_VOLUME_CLAIM,
    PRIORITY_CLASS,
    RESOURCE_CLAIM_TEMPLATE,
    RUNTIME_CLASS,
    SECRET,
    Resource,
    annotations_of,
)
from disagg_operator.vocabulary import Obj, map_in, maps_in
from disagg_wire.labels import ROUTER
from disagg_wire.roles import ROLES

REFERENCE_MISSING = "ReferenceMissing"
_REASONS = {NETWORK_ATTACHMENT.kind: "NetworkAttachmentMissing"}


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An object of the cluster."""

    resource: Resource
    namespace: str
    """Empty for a kind without namespaces."""
    name: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A field that names an object, which must exist before a pod can run."""

    path: str
    target: NamedObject
    key: str | None = None
    """The key that a Secret or ConfigMap must hold."""
    own: bool = False
    """Whether the operator makes the object itself, and needs to know only when it changes."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of a target. No value of a Secret is kept."""

    exists: bool
    keys: frozenset[str] = frozenset()
    lost: bool = False
    """Whether it is a claim that has lost its volume."""
    config: tuple[str, str] = ("", "")
    """What a network's attachment is made of: its configuration and the resource that it names."""


def sight_of(obj: Obj | None) -> Sight:
    """Return what matters of an object, or of its absence."""
    if obj is None:
        return Sight(exists=False)
    keys = frozenset({**(obj.get("data") or {}), **(obj.get("binaryData") or {})})
    lost = (obj.get("status") or {}).get("phase") == "Lost"
    config = (obj.get("spec") or {}).get("config") if obj.get("kind") == NETWORK_ATTACHMENT.kind else None
    if config is None:
        return Sight(True, keys, lost)
    return Sight(True, keys, lost, (str(config), annotations_of(obj).get(RESOURCE_ANNOTATION, "")))


def references_of(dd: DisaggDeployment) -> tuple[Reference, ...]:
    """Return all references of a resource, in the order of its fields.

    Those of its Prometheus are read, and told, by the autoscaler: the pods do without.
    """
    return tuple(_references(dd))


def missing(references: tuple[Reference, ...], seen: Mapping[NamedObject, Sight | None]) -> list[Violation]:
    """Return the references that lead nowhere. None stands for what could not be looked up."""
    return [violation for ref in references if (violation := _wrong(ref, seen.get(ref.target))) is not None]


def _wrong(ref: Reference, seen: Sight | None) -> Violation | None:
    target = ref.target
    what = f"{target.resource.kind} {target.namespace}/{target.name}".replace(" /", " ")
    reason = _REASONS.get(target.resource.kind, REFERENCE_MISSING)
    if seen is None or ref.own:
        return None
    if not seen.exists:
        return Violation(ref.path, f"{what} does not exist", reason)
    if ref.key is not None and ref.key not in seen.keys:
        return Violation(ref.path, f"{what} has no key {ref.key}", reason)
    return Violation(ref.path, f"{what} has lost its volume", reason) if seen.lost else None


def _references(dd: DisaggDeployment) -> Iterator[Reference]:
    spec, own = dd.spec, dd.metadata.namespace
    yield from _claim("spec.model.uri", spec.model.uri, own)
    for adapter in spec.model.adapters:
        yield from _claim(f"spec.model.adapters[{adapter.name}].uri", adapter.uri, own)
    if (secret := spec.model.auth_secret_ref) is not None:
        yield Reference("spec.model.authSecretRef", NamedObject(SECRET, own, secret.name), secret.key)
    if (secret := spec.router.api_keys_secret_ref) is not None:
        yield Reference("spec.router.apiKeysSecretRef", NamedObject(SECRET, own, secret.name), secret.key)
    if (tracing := spec.observability.tracing) is not None:
        for path, ref in (("headersSecretRef", tracing.headers_secret_ref), ("caSecretRef", tracing.ca_secret_ref)):
            if ref is not None:
                yield Reference(f"spec.observability.tracing.{path}", NamedObject(SECRET, own, ref.name), ref.key)
    network = spec.kv_transfer.network
    if network is not None and (nad := network.attachment_ref) is not None:
        target = NamedObject(NETWORK_ATTACHMENT, nad.namespace or own, nad.name)
        yield Reference("spec.kvTransfer.network.attachmentRef", target)
    if network is not None and network.attachment is not None:
        target = NamedObject(NETWORK_ATTACHMENT, own, network_name(dd.metadata.name))
        yield Reference("spec.kvTransfer.network.attachment", target, own=True)
    for index, rail in enumerate(() if network is None else network.rails):
        target = NamedObject(NETWORK_ATTACHMENT, rail.namespace or own, rail.name)
        yield Reference(f"spec.kvTransfer.network.rails[{index}]", target)
    for role in ROLES:
        if (claim := spec.pool(role).device_claim) is not None:
            target = NamedObject(RESOURCE_CLAIM_TEMPLATE, own, claim.template_name)
            yield Reference(f"spec.{role}.deviceClaim.templateName", target)
    templates = {ROUTER: spec.router.pod_template, **{role: spec.pool(role).pod_template for role in ROLES}}
    for role, template in templates.items():
        if template is not None and template.spec:
            yield from _of_pod(template.spec, f"spec.{role}.podTemplate.spec", own)


def _claim(path: str, uri: str, namespace: str) -> Iterator[Reference]:
    if uri.startswith("pvc://"):
        name = uri.removeprefix("pvc://").partition("/")[0]
        yield Reference(path, NamedObject(PERSISTENT_VOLUME_CLAIM, namespace, name))


def _of_pod(pod: Mapping[str, Any], path: str, own: str) -> Iterator[Reference]:
    for field, resource in (("priorityClassName", PRIORITY_CLASS), ("runtimeClassName", RUNTIME_CLASS)):
        if isinstance(name := pod.get(field), str) and name:
            yield Reference(f"{path}.{field}", NamedObject(resource, "", name))
    for volume in maps_in(pod.get("volumes")):
        here = f"{path}.volumes[{volume.get('name')}]"
        yield from _of_source(volume, here, own)
        for index, source in enumerate(maps_in(map_in(volume.get("projected")).get("sources"))):
            yield from _of_source(source, f"{here}.projected.sources[{index}]", own)
    for kind in ("initContainers", "containers"):
        for container in maps_in(pod.get(kind)):
            here = f"{path}.{kind}[{container.get('name')}]"
            for entry in maps_in(container.get("env")):
                yield from _of_variable(map_in(entry.get("valueFrom")), f"{here}.env[{entry.get('name')}]", own)
            for index, source in enumerate(maps_in(container.get("envFrom"))):
                for field, resource in (("secretRef", SECRET), ("configMapRef", CONFIG_MAP)):
                    yield from _named(
                        map_in(source.get(field)), "name", resource, f"{here}.envFrom[{index}].{field}", own
                    )


def _of_source(source: Mapping[str, Any], path: str, own: str) -> Iterator[Reference]:
    claim = map_in(source.get("persistentVolumeClaim"))
    yield from _named(claim, "claimName", PERSISTENT_VOLUME_CLAIM, f"{path}.persistentVolumeClaim", own)
    secret = map_in(source.get("secret"))
    yield from _named(secret, "secretName" if "secretName" in secret else "name", SECRET, f"{path}.secret", own)
    yield from _named(map_in(source.get("configMap")), "name", CONFIG_MAP, f"{path}.configMap", own)


def _of_variable(source: Mapping[str, Any], path: str, own: str) -> Iterator[Reference]:
    for field, resource in (("secretKeyRef", SECRET), ("configMapKeyRef", CONFIG_MAP)):
        found = map_in(source.get(field))
        key = found.get("key")
        for ref in _named(found, "name", resource, f"{path}.valueFrom.{field}", own):
            yield Reference(ref.path, ref.target, key if isinstance(key, str) else None)


def _named(held: Mapping[str, Any], field: str, resource: Resource, path: str, own: str) -> Iterator[Reference]:
    name = held.get(field)
    if isinstance(name, str) and name and held.get("optional") is not True:
        yield Reference(f"{path}.{field}", NamedObject(resource, own, name))
