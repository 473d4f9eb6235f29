"""Lists everything that is watched, so that the cache misses nothing for long."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from disagg_operator.kube.cache import KEPT, Cache
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import Forbidden, KubeError, NotFound
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, Resource
from disagg_operator.vocabulary import Key, Objs
from disagg_wire.labels import LABEL_DEPLOYMENT

log = logging.getLogger(__name__)


class Unlisted(KubeError):
    """Raised when a kind can't be listed, because its CRD or the right to it is missing."""

    def __init__(self, plural: str, message: str) -> None:
        super().__init__(message)
        self.plural = plural


async def refresh(
    kube: HttpKube, cache: Cache, namespaces: Sequence[str], wake: Callable[[set[Key]], None] = lambda _: None
) -> None:
    """Replace what the cache holds, kind by kind. Raises KubeError, such as Unlisted.

    `wake` is called with the keys of what has changed, of which no watch event is news any more.
    """
    for resource in KEPT:
        newest = cache.newest(resource)
        try:
            objects = await _list(kube, resource, namespaces)
        except (NotFound, Forbidden) as error:
            raise Unlisted(resource.plural, str(error)) from error
        wake(cache.replace(resource, objects, newest))
        await asyncio.sleep(0)  # others may run between two kinds


async def unread(kube: HttpKube, cache: Cache, namespaces: Sequence[str]) -> list[Key]:
    """Bring to the cache what another operator may have written until a moment ago.

    That is some lists. To read the children of each resource would take a dozen calls for each.
    Returns the keys of which the cache may not be believed: all of them if the lists fail.
    """
    try:
        await refresh(kube, cache, namespaces)
    except KubeError as error:
        log.warning("each resource is read by itself: %s", error)
        return cache.keys()
    return []


async def _list(kube: HttpKube, resource: Resource, namespaces: Sequence[str]) -> Objs:
    labels = "" if resource in (DISAGG_DEPLOYMENT, DISAGG_POOL) else LABEL_DEPLOYMENT
    spaces = namespaces or (None,)
    return [obj for namespace in spaces for obj in await kube.list(resource, namespace, labels)]
