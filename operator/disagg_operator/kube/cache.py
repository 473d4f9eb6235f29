"""PURE: The cache of watched objects, which also determines the keys that a change affects.

It holds the last seen version of every object. It is fed by watch events, by the answers to the
operator's own reads and writes and, every few minutes, by a full LIST, which repairs the effects of
a watch that went silent. An older version never replaces a newer one. The scrape loop reads from
the cache, and so does a reconcile until it finds something to do (controller/views.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from disagg_operator.kube.listings import Listing
from disagg_operator.kube.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    GROUP,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    ROLE,
    ROLE_BINDING,
    SERVICE,
    SERVICE_ACCOUNT,
    Resource,
    annotations_of,
    labels_of,
    object_key,
    uid_of,
)
from disagg_operator.vocabulary import UPDATE_RUNTIME, Key, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

WATCHED = (DISAGG_DEPLOYMENT, DISAGG_POOL, DEPLOYMENT, POD)
# Children of which it matters only that somebody else deletes or edits them.
MISSED = (SERVICE, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, POD_DISRUPTION_BUDGET, NETWORK_POLICY, CONTROLLER_REVISION)
KEPT = (*WATCHED, *MISSED)
_BY_KIND = {resource.kind: resource for resource in KEPT}
_SHORT = 64
# The conditions of pods and Deployments whose words status quotes.
_FAILURES = (("ReplicaFailure", "True"), ("PodScheduled", "False"))
_REFUSED_POD = re.compile(r'pods "[^"]*"')


class Cache:
    """The watched objects by kind and key. `put`, `drop` and `replace` return keys to reconcile."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Obj]] = {r.kind: {} for r in KEPT}
        # The fingerprint of each object, and the version that it was made of.
        self._prints: dict[str, dict[Key, tuple[str, int]]] = {r.kind: {} for r in WATCHED}
        # The kinds and own keys of the objects of each DisaggDeployment.
        self._families: dict[Key, dict[tuple[str, Key], None]] = {}
        self._newest: dict[str, int] = {r.kind: 0 for r in KEPT}
        # The versions of deletions by uid, until the next full list: a read that began before one
        # may still tell of the object.
        self._gone: dict[str, dict[str, int]] = {r.kind: {} for r in KEPT}

    def note(self, resource: Resource, obj: Obj, newest: int | None = None) -> Obj | None:
        """Store a version that the operator has seen itself, unless a newer one is held.

        If it was read, `newest` is what `newest` returned before: an older version then means that
        the API server's data are those of a backup. Its watch event still counts as news. Returns
        what is stored.
        """
        key = object_key(obj)
        if newest is not None and self._gone[resource.kind].get(uid_of(obj), 0) > newest:
            return None
        held = self._objects[resource.kind].get(key)
        is_older = held is not None and 0 < version_of(obj) < version_of(held)
        if held is not None and is_older and (newest is None or version_of(held) > newest):
            return None
        if (slim := _slim(resource, obj)) == held:
            return held
        self._store(resource, key, held, slim := dict(_shared(slim)))
        return slim

    def put(self, resource: Resource, obj: Obj, newest: int | None = None) -> set[Key]:
        """Store an object that was created or has changed, unless a newer version is held."""
        key = object_key(obj)
        held = self._objects[resource.kind].get(key)
        slim = self.note(resource, obj, newest)
        if slim is None:
            return set()
        if resource in MISSED:  # the operator's own write is held since it was answered
            edited = held is not None and held is not slim and _declared(held) != _declared(slim)
            return concerned(resource, slim) if edited else set()
        before, version = self._prints[resource.kind].get(key, ("", 0)), version_of(obj)
        if version and before[1] == version:
            return set()
        mark = fingerprint(resource, slim)
        self._prints[resource.kind][key] = mark, version
        return set() if before[0] == mark else concerned(resource, obj)

    def drop(self, resource: Resource, obj: Obj) -> set[Key]:
        """Remove an object that was deleted."""
        key, version = object_key(obj), version_of(obj)
        self._newest[resource.kind] = max(self._newest[resource.kind], version)
        self._gone[resource.kind][uid_of(obj)] = version
        held = self._objects[resource.kind].get(key)
        if held is not None and uid_of(held) != uid_of(obj):
            return set()  # a late DELETED event of an earlier object of the same name
        self._store(resource, key, held, None)
        if resource in WATCHED:
            self._prints[resource.kind].pop(key, None)
        return concerned(resource, obj)

    def newest(self, resource: Resource) -> int:
        """Return the newest version that was seen of a kind. To be asked before it is listed."""
        return self._newest[resource.kind]

    def replace(self, resource: Resource, objects: Iterable[Obj], newest: int | None = None) -> set[Key]:
        """Replace all objects of a kind with those of a full LIST.

        What is newer than the `newest` version from before the LIST may have come meanwhile.
        """
        keys: set[Key] = set()
        fresh = {object_key(obj): obj for obj in objects}
        for key, old in list(self._objects[resource.kind].items()):
            if key not in fresh and (newest is None or version_of(old) <= newest):
                keys |= self.drop(resource, old)
        for obj in fresh.values():
            keys |= self.put(resource, obj, newest)
        gone = self._gone[resource.kind] = {u: v for u, v in self._gone[resource.kind].items() if v > (newest or 0)}
        here = map(version_of, self._objects[resource.kind].values())
        self._newest[resource.kind] = max(*here, *gone.values(), 0, 0)
        return keys

    def drop_unlisted(self, listing: Listing) -> set[Key]:
        """Remove the objects that a list would have shown if they still existed."""
        keys: set[Key] = set()
        for key, old in list(self._objects[listing.resource.kind].items()):
            listed = listing.namespace in ("", key[0])
            if listed and key not in listing.keys and version_of(old) <= listing.version:
                keys |= self.drop(listing.resource, old)
        return keys

    def replace_family(self, key: Key, objects: Iterable[Obj], newest: Mapping[str, int]) -> None:
        """Replace the children of a DisaggDeployment with those that were read.

        Of other kinds than those in `newest`, nothing is replaced. It holds what the method of that
        name returned before, by kind.
        """
        fresh = {(str(obj["kind"]), object_key(obj)): obj for obj in objects if obj["kind"] in newest}
        for kind, own in list(self._families.get(key, ())):
            old = self._objects[kind][own]
            if kind in newest and (kind, own) not in fresh and version_of(old) <= newest[kind]:
                self.drop(_BY_KIND[kind], old)
        for (kind, _), obj in fresh.items():
            self.note(_BY_KIND[kind], obj, newest[kind])

    def _store(self, resource: Resource, key: Key, held: Obj | None, obj: Obj | None) -> None:
        member = (resource.kind, key)
        for family in () if held is None else concerned(resource, held):
            self._families.get(family, {}).pop(member, None)
            if not self._families.get(family):
                self._families.pop(family, None)
        if obj is None:
            self._objects[resource.kind].pop(key, None)
            return
        self._objects[resource.kind][key] = obj
        self._newest[resource.kind] = max(self._newest[resource.kind], version_of(obj))
        for family in concerned(resource, obj):
            self._families.setdefault(family, {})[member] = None

    def family(self, key: Key) -> list[Obj]:
        """Return the objects that carry the label of a DisaggDeployment, by kind and name."""
        members = sorted(self._families.get(key, ()))
        return [self._objects[kind][own] for kind, own in members if kind != DISAGG_DEPLOYMENT.kind]

    def get(self, resource: Resource, key: Key) -> Obj | None:
        return self._objects[resource.kind].get(key)

    def objects(self, resource: Resource) -> list[Obj]:
        """Return all objects of a kind."""
        return list(self._objects[resource.kind].values())

    def keys(self) -> list[Key]:
        """Return the keys of all DisaggDeployments in a stable order."""
        return sorted(self._objects[DISAGG_DEPLOYMENT.kind])

    def pods_by_deployment(self) -> dict[Key, list[Obj]]:
        """Return the pods of every DisaggDeployment, sorted by name."""
        out: dict[Key, list[Obj]] = {}
        for (namespace, _), pod in sorted(self._objects[POD.kind].items()):
            name = labels_of(pod).get(LABEL_DEPLOYMENT)
            if name:
                out.setdefault((namespace, name), []).append(pod)
        return out


def version_of(obj: Obj) -> int:
    """Return the resourceVersion as a number, which grows with every write; 0 if it is none."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0


def is_kept(resource: Resource, obj: Obj) -> bool:
    """Return whether the watches bring an object to the cache."""
    return resource in (DISAGG_DEPLOYMENT, DISAGG_POOL) or (resource in KEPT and LABEL_DEPLOYMENT in labels_of(obj))


def concerned(resource: Resource, obj: Obj) -> set[Key]:
    """Return the keys of the DisaggDeployments that an object belongs to: one, or none."""
    namespace = str(obj["metadata"].get("namespace", ""))
    if resource is DISAGG_DEPLOYMENT:
        return {(namespace, str(obj["metadata"]["name"]))}
    name = labels_of(obj).get(LABEL_DEPLOYMENT)
    return {(namespace, name)} if name else set()


def fingerprint(resource: Resource, obj: Obj) -> str:
    """Return a text that changes whenever something that a reconcile reads changes in an object.

    It leaves out what the operator itself writes to a status, so such a write causes no reconcile.
    """
    meta = obj["metadata"]
    common: list[Any] = [meta.get("uid"), meta.get("deletionTimestamp"), meta.get("generation"), meta.get("labels")]
    status = obj.get("status") or {}
    if resource is DISAGG_DEPLOYMENT:
        common.append(annotations_of(obj).get(UPDATE_RUNTIME))
    elif resource in (DISAGG_POOL, DEPLOYMENT):
        common.append({k: v for k, v in annotations_of(obj).items() if GROUP in k})
        common.append(meta.get("ownerReferences"))
    if resource is DEPLOYMENT:
        common.append({k: v for k, v in status.items() if k != "conditions"})
        common.append(_conditions_print(status))
    elif resource is POD:
        common.append([status.get("phase"), status.get("podIP")])
        common.append(_conditions_print(status))
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        common.append([_container_print(c) for c in containers])
    return json.dumps(common, sort_keys=True)


def _conditions_print(status: Obj) -> list[Any]:
    """Return what of the conditions counts: of those that tell of a failure, also the words.

    Each pod that is refused has another name, under which nobody knows it.
    """
    out: list[Any] = []
    for c in status.get("conditions") or []:
        failed = (c.get("type"), c.get("status")) in _FAILURES
        words = _REFUSED_POD.sub("pods", str(c.get("message", ""))) if failed else ""
        out.append((c.get("type"), c.get("status"), c.get("reason"), words))
    return out


def _container_print(container: Obj) -> list[Any]:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    return [
        container.get("name"), container.get("ready"), container.get("restartCount"), waiting.get("reason"),
        waiting.get("message"), ended.get("reason"), ended.get("exitCode"), ended.get("message"),
    ]  # fmt: skip


def _declared(obj: Obj) -> Obj:
    """Return what somebody has written of an object that has no generation to tell it."""
    meta = {k: v for k, v in obj["metadata"].items() if k not in ("resourceVersion", "generation")}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": meta}


def _slim(resource: Resource, obj: Obj) -> Obj:
    """Return an object without managedFields, which make up half of its size.

    They tell who scaled a pool, and which fields of a resource the CRD has dropped.
    """
    if resource in (DISAGG_DEPLOYMENT, DISAGG_POOL):
        return obj
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "metadata": meta}


def _shared(value: Any) -> Any:
    """Return a copy of a value that shares its names and short texts with other objects.

    What is parsed shares nothing, and a thousand resources have the same fields.
    """
    if isinstance(value, dict):
        return {_the_same(name): _shared(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shared(part) for part in value]
    return _the_same(value) if isinstance(value, str) and len(value) <= _SHORT else value


@lru_cache(maxsize=8192)
def _the_same(text: str) -> str:
    """Return one object for all texts that are equal."""
    return text
