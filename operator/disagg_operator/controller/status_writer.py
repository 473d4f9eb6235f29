"""Writes statuses where they have changed, and sends the Events that tell of the change."""

from __future__ import annotations

from collections.abc import Callable

from disagg_operator.kube.client import Kube
from disagg_operator.kube.lost_fields import lost_fields
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, name_of, uid_of
from disagg_operator.status import changes, conditions, unsettled
from disagg_operator.status.recorder import Recorder
from disagg_operator.vocabulary import Key, Obj


class StatusWriter:
    """Writes the statuses of resources and pools. Every method raises KubeError."""

    def __init__(self, kube: Kube, recorder: Recorder, wall: Callable[[], str]) -> None:
        self._kube = kube
        self._recorder = recorder
        self._wall = wall

    async def refuse(self, resource: Obj, reason: str, message: str) -> None:
        """Write into status that nothing of a resource can be served."""
        stored = resource.get("status") or {}
        new = conditions.refused(int(resource["metadata"].get("generation", 0)), reason, message, stored, self._wall())
        await self.write(resource, new)
        await self._recorder.send(resource, changes.of_change(stored, new))

    async def tell_failure(self, key: Key, reason: str, message: str) -> None:
        """Write into status that the reconcile of a resource fails and is tried again."""
        resource = await self._kube.get(DISAGG_DEPLOYMENT, *key)
        if resource is None or lost_fields(resource):
            return
        stored = resource.get("status") or {}
        generation = int(resource["metadata"].get("generation", 0))
        new = unsettled.failed(generation, reason, message, stored, self._wall())
        await self.write(resource, new)
        await self._recorder.send(resource, changes.of_change(stored, new))

    async def write(self, resource: Obj, new: Obj) -> None:
        """Write the status of a resource or a pool, unless it is the one that is stored."""
        if new == (resource.get("status") or {}):
            return
        # With the uid, a status never reaches another resource that has the same name by now.
        meta = {"name": name_of(resource), "namespace": resource["metadata"]["namespace"], "uid": uid_of(resource)}
        kind = {"apiVersion": resource["apiVersion"], "kind": resource["kind"]}
        await self._kube.apply_status({**kind, "metadata": meta, "status": new})
