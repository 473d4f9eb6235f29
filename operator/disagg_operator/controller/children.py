"""The objects that a deployment owns in the cluster: reading, applying and pruning them.

This module knows no policy.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from disagg_operator.api import DisaggDeployment
from disagg_operator.controller import drift
from disagg_operator.desired.names import key_secret_name, owned_by_deployment, owned_by_pool, pool_name
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import (
    CONTROLLER_REVISION,
    DISAGG_POOL,
    OWNED,
    POD,
    SECRET,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    owned_by,
    resource_of,
    uid_of,
)
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.cluster_key import bearer_of
from disagg_wire.labels import LABEL_DEPLOYMENT, LABEL_POOL

log = logging.getLogger(__name__)

ChildKey = tuple[str, str]
"""The kind and the name of an object."""


def key_of(obj: Obj) -> ChildKey:
    return str(obj["kind"]), name_of(obj)


class NameTaken(Exception):
    """Raised when an object to be created exists already and belongs to another owner."""


@dataclass(slots=True)
class Children:
    """The live objects by (kind, name), and the pods of the deployment."""

    objects: dict[ChildKey, Obj]
    pods: list[Obj]
    absent: set[ChildKey] = field(default_factory=set)
    """What has been looked up in this run and does not exist."""
    complete: bool = False
    """Whether nothing else is to be looked up: a new resource has no children."""

    def get(self, kind: str, name: str) -> Obj | None:
        return self.objects.get((kind, name))


async def read(kube: Kube, key: Key) -> Children:
    """List all kinds that may be owned, and the pods, by label, and get the Secret by name.

    Raises KubeError.
    """
    namespace, name = key
    labels = f"{LABEL_DEPLOYMENT}={name}"
    listing = asyncio.gather(*(kube.list(r, namespace, labels) for r in (*OWNED, POD)))
    found, (*lists, pods) = await asyncio.gather(kube.get(SECRET, namespace, key_secret_name(name)), listing)
    objects = [o for listed in lists for o in listed] + ([] if found is None else [found])
    return Children({(str(o["kind"]), name_of(o)): o for o in objects}, pods)


def cluster_key_of(secret: Obj | None) -> bytes | None:
    """Return the key that routers and workers share, as their key file holds it, or None."""
    try:
        return base64.b64decode(((secret or {}).get("data") or {})["cluster-key"], validate=True).strip() or None
    except (KeyError, TypeError, ValueError):
        return None


def bearer_in(children: Children, name: str) -> str | None:
    """Return the token for the internal calls of a resource's pods, or None if there is no key."""
    found = cluster_key_of(children.get(SECRET.kind, key_secret_name(name)))
    return None if found is None else bearer_of(found)


async def bearer(kube: Kube, key: Key) -> str | None:
    """Read the token for the internal calls of a resource's pods; None if it cannot be read."""
    try:
        found = cluster_key_of(await kube.get(SECRET, key[0], key_secret_name(key[1])))
    except KubeError as error:
        log.warning("%s/%s: %s", *key, error)
        return None
    return None if found is None else bearer_of(found)


async def apply(kube: Kube, rendered: Obj, children: Children, owners: frozenset[str]) -> bool:
    """Bring one object up to date, and return whether that needed a request.

    Raises KubeError and NameTaken.
    """
    key = key_of(rendered)
    live = await owned_or_absent(kube, rendered, children, owners)
    if live is not None and (key[0] == SECRET.kind or drift.up_to_date(rendered, live)):
        children.objects[key] = live  # a Secret is created once and never changed: all pods use its key
        return False
    children.objects[key] = await kube.apply(drift.stamped(rendered))
    return True


def is_orphan(live: Obj, deployment: str) -> bool:
    """Return whether an object was left behind when its resource was deleted with --cascade=orphan.

    It has no owner but pods, the label of the resource, and the mark of a write of the operator. A
    resource of the same name adopts it. What has any other owner is never taken over.
    """
    owned = any(owner.get("kind") != POD.kind for owner in live["metadata"].get("ownerReferences") or [])
    marked = drift.APPLIED_HASH in annotations_of(live)
    return not owned and marked and labels_of(live).get(LABEL_DEPLOYMENT) == deployment


def _is_ours(live: Obj, rendered: Obj, owners: frozenset[str]) -> bool:
    return owned_by(live, owners) or is_orphan(live, labels_of(rendered).get(LABEL_DEPLOYMENT, ""))


async def adopt_what_stays(
    kube: Kube, dd: DisaggDeployment, uid: str, children: Children, staying: frozenset[ChildKey] = frozenset()
) -> None:
    """Take over what an earlier resource has left behind and what is not applied again.

    That is the Secret, whose key the running pods use, the history of revisions, and the
    Deployments that a rollout leaves as they are (`staying`). Other objects are adopted as they are
    applied. Raises KubeError.
    """
    for key, obj in list(children.objects.items()):
        stays = key[0] in (SECRET.kind, CONTROLLER_REVISION.kind) or key in staying
        if not stays or not is_orphan(obj, dd.metadata.name):
            continue
        role = labels_of(obj).get(LABEL_POOL, "")
        pool = children.get(DISAGG_POOL.kind, pool_name(dd.metadata.name, role))
        owners = owned_by_deployment(dd, uid) if pool is None else owned_by_pool(dd, role, uid_of(pool))
        version = {k: obj["metadata"][k] for k in ("uid", "resourceVersion")}
        patch = {"metadata": {"ownerReferences": owners, **version}}
        children.objects[key] = await kube.merge(resource_of(obj), dd.metadata.namespace, key[1], patch)


async def owned_or_absent(kube: Kube, rendered: Obj, children: Children, owners: frozenset[str]) -> Obj | None:
    """Return the live object of that name, which is ours, or None if there is none.

    Raises KubeError and NameTaken.
    """
    key = key_of(rendered)
    live = children.objects.get(key)
    if live is None and key not in children.absent and not children.complete:
        # The object does not carry the deployment's label. Either it does not exist, or it belongs
        # to another owner and must not be taken over by force.
        live = await kube.get(resource_of(rendered), namespace_of(rendered), key[1])
        if live is None:
            children.absent.add(key)
    if live is not None and not _is_ours(live, rendered, owners):
        raise NameTaken(f"{key[0]} {key[1]} exists and does not belong to this resource")
    return live


async def prune(
    kube: Kube,
    resource: Obj,
    rendered: Sequence[Obj],
    children: Children,
    staying: frozenset[tuple[str, str]] = frozenset(),
) -> list[Obj]:
    """Delete the owned objects, and the orphans, that are no longer rendered, and return them.

    Pools and Secrets are never deleted, nor are the objects whose kind and name are in `staying`.
    Raises KubeError.
    """
    wanted = {(str(o["kind"]), name_of(o)) for o in rendered} | staying
    owners, gone = owners_of(resource, children), []
    for which, obj in list(children.objects.items()):
        kept = which in wanted or which[0] in (SECRET.kind, DISAGG_POOL.kind)
        ours = owned_by(obj, owners) or is_orphan(obj, name_of(resource))
        if kept or not ours or obj["metadata"].get("deletionTimestamp"):
            continue
        await kube.delete(obj)
        del children.objects[which]
        gone.append(obj)
    return gone


def owners_of(resource: Obj, children: Children) -> frozenset[str]:
    """Return the uids that mark an object as ours: those of the resource and of its pools."""
    uid = frozenset({uid_of(resource)})
    pools = (o for (kind, _), o in children.objects.items() if kind == DISAGG_POOL.kind)
    return uid | {uid_of(pool) for pool in pools if owned_by(pool, uid) or is_orphan(pool, name_of(resource))}
