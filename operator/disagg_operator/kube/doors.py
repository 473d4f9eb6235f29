"""The doors through which a run of the reconciler calls the API server.

Each of them passes all calls on, and notes what the API server answers to a write, so that the next
run, which may read from memory, does not miss it.
"""

from __future__ import annotations

from collections.abc import Callable

from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Invalid
from disagg_operator.kube.resources import Resource, name_of
from disagg_operator.vocabulary import Obj, Objs

# An apply also changes what exists. But the API server removes this field from what it creates, and
# nobody may set it in what exists; so with it, an apply creates an object or is refused.
_ONLY_NEW = "deletionGracePeriodSeconds"


class Stale(Exception):
    """Raised when a run may not go on with what it has read: it is to read everything anew."""


class Door:
    """All calls pass."""

    def __init__(self, kube: Kube, note: Callable[[Obj], object]) -> None:
        self._kube = kube
        self._note = note

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        return await self._kube.get(resource, namespace, name)

    async def list(self, resource: Resource, namespace: str | None = None, labels: str = "", fields: str = "") -> Objs:
        return await self._kube.list(resource, namespace, labels, fields)

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        answer = await self._kube.apply(obj, dry_run=dry_run)
        if not dry_run:
            self._note(answer)
        return answer

    async def apply_status(self, obj: Obj) -> Obj:
        answer = await self._kube.apply_status(obj)
        self._note(answer)
        return answer

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        answer = await self._kube.merge(resource, namespace, name, patch)
        self._note(answer)
        return answer

    async def delete(self, obj: Obj) -> None:
        await self._kube.delete(obj)

    async def create_event(self, event: Obj) -> None:
        await self._kube.create_event(event)

    async def version(self) -> str:
        return await self._kube.version()

    async def has_api(self, resource: Resource) -> bool:
        return await self._kube.has_api(resource)


class ClosedDoor(Door):
    """The door of a run that has read from the cache: it may tell what it sees, but not act on it.

    Every write but that of a status raises Stale.
    """

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        raise Stale(f"{obj['kind']} {name_of(obj)} differs")

    async def merge(self, resource: Resource, namespace: str | None, name: str, patch: Obj) -> Obj:
        raise Stale(f"{resource.kind} {name} differs")

    async def delete(self, obj: Obj) -> None:
        raise Stale(f"{obj['kind']} {name_of(obj)} is to be deleted")


class CreatingDoor(Door):
    """The door of the first run of a new resource, of which nothing should exist yet.

    It creates objects, but changes none that it has not created: if there is one of that name, it
    raises Stale.
    """

    def __init__(self, kube: Kube, note: Callable[[Obj], object]) -> None:
        super().__init__(kube, note)
        self._created: set[tuple[str, str]] = set()

    async def apply(self, obj: Obj, *, dry_run: bool = False) -> Obj:
        which = (str(obj["kind"]), name_of(obj))
        if which in self._created:
            return await super().apply(obj, dry_run=dry_run)
        fresh = {**obj, "metadata": {**obj["metadata"], _ONLY_NEW: 1}}
        try:
            answer = await super().apply(fresh, dry_run=dry_run)
        except Invalid as error:
            if any(path == f"metadata.{_ONLY_NEW}" for path, _ in error.fields):
                raise Stale(f"{' '.join(which)} exists") from None
            raise
        if not dry_run:
            self._created.add(which)
        return answer
