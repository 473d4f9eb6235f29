"""PURE: The cache of watched objects, which also determines the keys that a change affects.

It holds the last seen version of every object. It is fed by watch events and, every few minutes, by
a full LIST, which repairs the effects of a watch that went silent. The scrape loop reads from the
cache; a reconcile itself always reads from the API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
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
    uid_of,
)
from disagg_operator.vocabulary import UPDATE_RUNTIME, Key, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

WATCHED = (DISAGG_DEPLOYMENT, DISAGG_POOL, DEPLOYMENT, POD)
# Children of which only the deletion matters before the next full list. They are not kept here.
MISSED = (SERVICE, SERVICE_ACCOUNT, ROLE, ROLE_BINDING, POD_DISRUPTION_BUDGET, NETWORK_POLICY)


class Cache:
    """The watched objects by kind and key. `put`, `drop` and `replace` return keys to reconcile."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Obj]] = {r.kind: {} for r in WATCHED}
        self._prints: dict[str, dict[Key, str]] = {r.kind: {} for r in WATCHED}

    def put(self, resource: Resource, obj: Obj) -> set[Key]:
        """Store an object that was created or has changed."""
        if resource in MISSED:
            return set()
        key = _own_key(obj)
        slim = _slim(obj)
        mark = fingerprint(resource, slim)
        self._objects[resource.kind][key] = slim
        if self._prints[resource.kind].get(key) == mark:
            return set()
        self._prints[resource.kind][key] = mark
        return concerned(resource, obj)

    def drop(self, resource: Resource, obj: Obj) -> set[Key]:
        """Remove an object that was deleted."""
        if resource in MISSED:
            return concerned(resource, obj)
        key = _own_key(obj)
        held = self._objects[resource.kind].get(key)
        if held is not None and uid_of(held) != uid_of(obj):
            return set()  # a late DELETED event of an earlier object of the same name
        self._objects[resource.kind].pop(key, None)
        self._prints[resource.kind].pop(key, None)
        return concerned(resource, obj)

    def replace(self, resource: Resource, objects: Iterable[Obj]) -> set[Key]:
        """Replace all objects of a kind with those of a full LIST."""
        keys: set[Key] = set()
        fresh = {_own_key(obj): obj for obj in objects}
        for key, old in list(self._objects[resource.kind].items()):
            if key not in fresh:
                keys |= self.drop(resource, old)
        for obj in fresh.values():
            keys |= self.put(resource, obj)
        return keys

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
    elif resource is DEPLOYMENT:
        common.append({k: v for k, v in status.items() if k != "conditions"})
        common.append([(c.get("type"), c.get("status"), c.get("reason")) for c in status.get("conditions") or []])
    elif resource is POD:
        common.append([status.get("phase"), status.get("podIP")])
        common.append([(c.get("type"), c.get("status"), c.get("reason")) for c in status.get("conditions") or []])
        containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        common.append([_container_print(c) for c in containers])
    return json.dumps(common, sort_keys=True)


def _container_print(container: Obj) -> list[Any]:
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated") or {}
    return [
        container.get("name"), container.get("ready"), container.get("restartCount"), waiting.get("reason"),
        ended.get("reason"), ended.get("exitCode"), ended.get("message"),
    ]  # fmt: skip


def _own_key(obj: Obj) -> Key:
    return str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


def _slim(obj: Obj) -> Obj:
    """Return an object without managedFields, which make up half of its size and are never read."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "metadata": meta}
