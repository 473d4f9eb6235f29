"""The lanes in which a term begins: what somebody has edited comes before what is unchanged."""

from __future__ import annotations

from collections.abc import Iterable

from disagg_operator.controller.work_queue import Lane
from disagg_operator.kube.resources import name_of, namespace_of
from disagg_operator.vocabulary import Key, Obj


def first_lanes(resources: Iterable[Obj]) -> dict[Lane, set[Key]]:
    """Return the keys of all resources by lane, the most urgent lane first.

    An edit that no operator has seen yet is told by its generation, which is newer than that of the
    status. A resource without a status is a new one.
    """
    lanes: dict[Lane, set[Key]] = {Lane.EDIT: set(), Lane.NEW: set(), Lane.RESYNC: set()}
    for resource in resources:
        status, meta = resource.get("status") or {}, resource["metadata"]
        seen = status.get("observedGeneration")
        lane = Lane.NEW if seen is None else Lane.RESYNC if seen == meta.get("generation") else Lane.EDIT
        lanes[lane].add((namespace_of(resource) or "", name_of(resource)))
    return lanes
