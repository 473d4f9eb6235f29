"""Removes what was written of a resource that is refused before it was ever accepted."""

from __future__ import annotations

import logging

from disagg_operator.controller import children as kids
from disagg_operator.controller.views import View
from disagg_operator.kube.resources import DEPLOYMENT, SECRET, name_of, namespace_of, owned_by
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)


def of(resource: Obj, children: kids.Children) -> list[Obj]:
    """Return the objects of a refused resource that may go: none if anything may run with them."""
    if children.pods or any(kind == DEPLOYMENT.kind for kind, _ in children.objects):
        return []
    owners = kids.owners_of(resource, children)
    return [
        obj
        for (kind, _), obj in children.objects.items()
        if kind != SECRET.kind and owned_by(obj, owners) and not obj["metadata"].get("deletionTimestamp")
    ]


async def clear(view: View) -> None:
    """Delete what is left of a write that was broken off. Raises KubeError."""
    for obj in of(view.resource or {}, view.children):
        await view.kube.delete(obj)
        log.info("%s: deleted %s %s of a refused resource", namespace_of(obj), obj["kind"], name_of(obj))
