"""An API server in memory, with the same Protocol as disagg_operator.kube.client.HttpKube.

It has the features that the operator relies on: server-side apply with one field manager (fields
that it no longer applies are removed, fields of others stay), resourceVersion and generation that
change only when the object does, status as a subresource, preconditions, garbage collection by
ownerReferences, and labels in LIST. It can be told to fail at the n-th write, which simulates a
crash between two writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from disagg_operator.kube.errors import Conflict, Invalid, NotFound, Retry
from disagg_operator.kube.resources import DISAGG_POOL, Resource, labels_of, name_of, namespace_of, resource_of, uid_of
from disagg_operator.vocabulary import Obj

StoreKey = tuple[str, str, str]
MANAGER = "disagg-operator"


class FakeKube:
    """The API server; the docstring of the module describes it.

    `log` holds every write that changed something, and `writes` counts all of them.
    """

    def __init__(self) -> None:
        self.objects: dict[StoreKey, Obj] = {}
        self.events: list[Obj] = []
        self.log: list[tuple[str, str, str]] = []
        self.writes = 0
        self.fail_at_write: int | None = None
        self.lose_answer_at: int | None = None  # the write that is carried out and not answered
        self.absent: set[str] = set()  # kinds that this cluster does not serve
        self.invalid_names: set[str] = set()  # names whose dry run is refused
        self._applied: dict[tuple[StoreKey, str], Obj] = {}
        self._counter = 0
        self.on_write: Callable[[str, Obj], None] = lambda verb, obj: None

    # -- changes that tests make behind the operator's back --

    def put(self, obj: Obj) -> Obj:
        """Create or replace an object as another client would."""
        stored = copy.deepcopy(obj)
        old = self.objects.get(_key(obj))
        meta = stored["metadata"]
        meta["uid"] = meta.get("uid") or (uid_of(old) if old else f"uid-{self._tick()}")
        meta["resourceVersion"] = str(self._tick())
        changed = old is None or old.get("spec") != stored.get("spec")
        meta["generation"] = (old["metadata"]["generation"] if old else 0) + (1 if changed else 0)
        self.objects[_key(obj)] = stored
        return copy.deepcopy(stored)

    def find(self, kind: str, name: str, namespace: str = "default") -> Obj:
        return self.objects[(kind, namespace, name)]

    def names(self, kind: str) -> list[str]:
        return sorted(key[2] for key in self.objects if key[0] == kind)

    def scale(self, name: str, replicas: int, manager: str = "kubectl-scale", namespace: str = "default") -> None:
        """Send a PATCH to a DisaggPool's /scale."""
        pool = self.objects[("DisaggPool", namespace, name)]
        pool["spec"]["replicas"] = replicas
        pool["metadata"]["resourceVersion"] = str(self._tick())
        pool["metadata"]["generation"] += 1
        entry = {"manager": manager, "time": f"2026-01-01T00:{self._counter:04}", "subresource": "scale"}
        pool["metadata"].setdefault("managedFields", []).append({**entry, "fieldsV1": {"f:spec": {"f:replicas": {}}}})

    def remove(self, kind: str, name: str, namespace: str = "default") -> None:
        """Delete an object and everything that it owns."""
        gone = self.objects.pop((kind, namespace, name))
        self._collect(uid_of(gone))

    # -- the Protocol --

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        return copy.deepcopy(self.objects.get((resource.kind, namespace or "", name)))

    async def list(
        self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> list[Obj]:
        wanted = dict(part.split("=", 1) for part in labels.split(",") if "=" in part)
        exists = [part for part in labels.split(",") if part and "=" not in part]
        return [
            copy.deepcopy(obj)
            for key, obj in sorted(self.objects.items())
            if key[0] == resource.kind
            and namespace in (None, key[1])
            and all(labels_of(obj).get(k) == v for k, v in wanted.items())
            and all(k in labels_of(obj) for k in exists)
        ]

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        if "deletionGracePeriodSeconds" in obj["metadata"] and _key(obj) in self.objects:
            field = ("metadata.deletionGracePeriodSeconds", "field is immutable")
            raise Invalid(f"apply {_key(obj)}: {': '.join(field)}", [field])
        if dry_run:
            if name_of(obj) in self.invalid_names:
                raise Invalid(f"apply {name_of(obj)}: spec.template: wrong")
            answer, stored = copy.deepcopy(obj), self.objects.get(_key(obj))
            if stored is not None:
                answer["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"]
            return answer
        key = self._begin("apply", obj)
        live = self.objects.get(key)
        precondition = obj["metadata"].get("resourceVersion")
        if precondition is not None and (live is None or live["metadata"]["resourceVersion"] != precondition):
            raise Conflict(f"apply {key}: the object has been modified")
        wanted = copy.deepcopy(obj)
        wanted["metadata"].pop("resourceVersion", None)
        wanted["metadata"].pop("deletionGracePeriodSeconds", None)
        wanted.pop("status", None)
        return self._store("apply", key, live, wanted, "main")

    async def apply_status(self, obj: Obj) -> Obj:
        key = self._begin("apply_status", obj)
        live = self.objects.get(key)
        if live is None:
            raise NotFound(f"apply_status {key}")
        if obj["metadata"].get("uid", uid_of(live)) != uid_of(live):
            raise Conflict(f"apply_status {key}: precondition failed: UID")
        return self._store(
            "apply_status", key, live, {"metadata": {}, "status": copy.deepcopy(obj["status"])}, "status"
        )

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        live = self.objects.get((resource.kind, namespace or "", name))
        if live is None:
            raise NotFound(f"merge {resource.plural}/{name}")
        if patch.get("metadata", {}).get("resourceVersion") not in (None, live["metadata"].get("resourceVersion")):
            raise Conflict(f"merge {resource.plural}/{name}: it has changed")
        key = self._begin("merge", live)
        merged = copy.deepcopy(live)
        _overlay(merged, patch)
        return self._commit("merge", key, live, merged)

    async def delete(self, obj: Obj) -> None:
        key = self._begin("delete", obj)
        live = self.objects.get(key)
        if live is None:
            return
        meta = obj["metadata"]
        if (meta["uid"], meta["resourceVersion"]) != (live["metadata"]["uid"], live["metadata"]["resourceVersion"]):
            raise Conflict(f"delete {key}: precondition failed")
        self.log.append(("delete", key[0], key[2]))
        del self.objects[key]
        self._collect(uid_of(live))

    async def create_event(self, event: Obj) -> None:
        self.events.append(copy.deepcopy(event))

    async def version(self) -> str:
        return "v1.37.0"

    async def has_api(self, resource: Resource) -> bool:
        return resource.kind not in self.absent

    # -- internals --

    def _begin(self, verb: str, obj: Obj) -> StoreKey:
        resource = resource_of(obj)
        if resource.kind in self.absent:
            raise NotFound(f"{verb} {resource.plural}: no such API")
        if "managedFields" in obj["metadata"]:
            raise Invalid("metadata.managedFields must be nil")
        self.writes += 1
        if self.fail_at_write is not None and self.writes >= self.fail_at_write:
            raise Retry(f"{verb} {resource.plural}: killed at write {self.writes}")
        self.on_write(verb, obj)
        return _key(obj)

    def _store(self, verb: str, key: StoreKey, live: Obj | None, wanted: Obj, part: str) -> Obj:
        merged: Obj = copy.deepcopy(live) if live is not None else {"metadata": {"uid": f"uid-{self._tick()}"}}
        before = self._applied.get((key, part), {})
        _prune(merged, before, wanted)
        _overlay(merged, wanted)
        if key[0] == DISAGG_POOL.kind and part == "main":
            merged["spec"].setdefault("replicas", 1)
        self._applied[(key, part)] = wanted
        return self._commit(verb, key, live, merged)

    def _commit(self, verb: str, key: StoreKey, live: Obj | None, merged: Obj) -> Obj:
        if live is None or merged != live:
            meta = merged["metadata"]
            meta["resourceVersion"] = str(self._tick())
            if live is None or live.get("spec") != merged.get("spec"):
                meta["generation"] = meta.get("generation", 0) + 1
            self.objects[key] = merged
            self.log.append((verb, key[0], key[2]))
        if self.writes == self.lose_answer_at:
            raise Retry(f"{verb} {key}: no answer to write {self.writes}")
        return copy.deepcopy(self.objects[key])

    def _collect(self, uid: str) -> None:
        """Delete the objects whose last owner is gone, and take the owner out of the others."""
        for key, obj in list(self.objects.items()):
            owners = obj["metadata"].get("ownerReferences") or []
            left = [owner for owner in owners if owner.get("uid") != uid]
            if len(left) == len(owners) or key not in self.objects:
                continue
            if left:
                meta = {**obj["metadata"], "ownerReferences": left, "resourceVersion": str(self._tick())}
                self.objects[key] = {**obj, "metadata": meta}
            else:
                self._collect(uid_of(self.objects.pop(key)))

    def _tick(self) -> int:
        self._counter += 1
        return self._counter


def _key(obj: Obj) -> StoreKey:
    return str(obj["kind"]), namespace_of(obj) or "", name_of(obj)


def _overlay(target: dict[str, Any], source: dict[str, Any]) -> None:
    for key, value in source.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            _overlay(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def _prune(target: dict[str, Any], before: dict[str, Any], now: dict[str, Any]) -> None:
    """Remove the fields that were applied before and are no longer applied."""
    for key, value in before.items():
        if key not in now:
            target.pop(key, None)
        elif isinstance(value, dict) and isinstance(now[key], dict) and isinstance(target.get(key), dict):
            _prune(target[key], value, now[key])
