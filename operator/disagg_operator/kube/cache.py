"""PURE: the last seen version of every watched object, and which keys a change concerns.

Fed by watch events and, every few minutes, by a full LIST, so that a watch that went silent is
repaired. The cache serves the scrape loop and says what to reconcile; a reconcile itself always
reads from the API server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, DISAGG_POOL, POD, Resource, labels_of, uid_of
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

WATCHED = (DISAGG_DEPLOYMENT, DISAGG_POOL, DEPLOYMENT, POD)


class Cache:
    """Objects by kind and key. `put`, `drop` and `replace` return the keys to reconcile."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Obj]] = {r.kind: {} for r in WATCHED}
        self._prints: dict[str, dict[Key, str]] = {r.kind: {} for r in WATCHED}

    def put(self, resource: Resource, obj: Obj) -> set[Key]:
        key = _own_key(obj)
        slim = _slim(obj)
        mark = fingerprint(resource, slim)
        self._objects[resource.kind][key] = slim
        if self._prints[resource.kind].get(key) == mark:
            return set()
        self._prints[resource.kind][key] = mark
        return concerned(resource, obj)

    def drop(self, resource: Resource, obj: Obj) -> set[Key]:
        key = _own_key(obj)
        held = self._objects[resource.kind].get(key)
        if held is not None and uid_of(held) != uid_of(obj):
            return set()  # a late DELETED of an earlier object of the same name
        self._objects[resource.kind].pop(key, None)
        self._prints[resource.kind].pop(key, None)
        return concerned(resource, obj)

    def replace(self, resource: Resource, objects: Iterable[Obj]) -> set[Key]:
        """Take a full LIST as the truth: what it doesn't name is gone."""
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

    def keys(self) -> list[Key]:
        """All DisaggDeployments, in a stable order."""
        return sorted(self._objects[DISAGG_DEPLOYMENT.kind])

    def pods_by_deployment(self) -> dict[Key, list[Obj]]:
        out: dict[Key, list[Obj]] = {}
        for (namespace, _), pod in sorted(self._objects[POD.kind].items()):
            name = labels_of(pod).get(LABEL_DEPLOYMENT)
            if name:
                out.setdefault((namespace, name), []).append(pod)
        return out


def concerned(resource: Resource, obj: Obj) -> set[Key]:
    """The DisaggDeployments that an object belongs to."""
    namespace = str(obj["metadata"].get("namespace", ""))
    if resource is DISAGG_DEPLOYMENT:
        return {(namespace, str(obj["metadata"]["name"]))}
    name = labels_of(obj).get(LABEL_DEPLOYMENT)
    return {(namespace, name)} if name else set()


def fingerprint(resource: Resource, obj: Obj) -> str:
    """What of an object a reconcile looks at.

    Our own status writes aren't in it, so they wake nobody.
    """
    meta = obj["metadata"]
    common: list[Any] = [meta.get("uid"), meta.get("deletionTimestamp"), meta.get("generation"), meta.get("labels")]
    status = obj.get("status") or {}
    if resource is DEPLOYMENT:
        common.append({k: v for k, v in status.items() if k != "conditions"})
        common.append([(c.get("type"), c.get("status"), c.get("reason")) for c in status.get("conditions") or []])
    elif resource is POD:
        common.append([status.get("phase"), status.get("podIP")])
        common.append([(c.get("type"), c.get("status"), c.get("reason")) for c in status.get("conditions") or []])
        common.append([_container_print(c) for c in status.get("containerStatuses") or []])
    return json.dumps(common, sort_keys=True)


def _container_print(container: Obj) -> list[Any]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    return [container.get("name"), container.get("ready"), container.get("restartCount"), waiting.get("reason")]


def _own_key(obj: Obj) -> Key:
    return str(obj["metadata"].get("namespace", "")), str(obj["metadata"]["name"])


def _slim(obj: Obj) -> Obj:
    """Without managedFields: half of an object's size, and nobody here reads them."""
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "metadata": meta}
