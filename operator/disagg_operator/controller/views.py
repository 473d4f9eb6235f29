"""What a run of the reconciler reads of its resource, and the door through which it writes.

A run first reads from the cache. It may write status from that, and does nothing else: as soon as
it finds something to do, it is broken off and repeated with everything read from the API server. So
every other write to a resource that exists rests on a fresh read, and a run for a resource with
which all is well costs no call. A new resource, of which nothing exists yet, is created without a
read.

What the cache says of a key is not believed after a failure, nor when a term begins, until
everything has been listed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from disagg_operator.controller import children as kids
from disagg_operator.controller.children import Children
from disagg_operator.controller.victims import is_marked
from disagg_operator.desired.names import key_secret_name
from disagg_operator.kube.cache import KEPT, Cache, is_kept
from disagg_operator.kube.client import Kube
from disagg_operator.kube.doors import ClosedDoor, CreatingDoor, Door, Stale
from disagg_operator.kube.resources import (
    DISAGG_DEPLOYMENT,
    NETWORK_ATTACHMENT,
    POD,
    SECRET,
    name_of,
    namespace_of,
    resource_of,
    uid_of,
)
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

# The operator may not watch Secrets. `own_objects` looks for missing ones, and so does a run after
# this time.
_SECRET_HOLDS_S = 120.0


@dataclass(frozen=True, slots=True)
class View:
    """A resource and its children, as far as they are known."""

    resource: Obj | None
    children: Children
    kube: Kube
    fresh: bool = True
    """Whether it was read from the API server just now."""
    first: bool = False
    """Whether nothing of the resource exists yet."""

    def certain(self) -> None:
        """Raise Stale unless this may be acted on."""
        if not self.fresh and not self.first:
            raise Stale("something is to be done")


class Views:
    """The views of all resources. `clock` is monotonic.

    Without a cache, every view is fresh. Every method that waits raises KubeError.
    """

    def __init__(self, kube: Kube, cache: Cache | None = None, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._kube = kube
        self._cache = cache
        self._clock = clock
        self._doubtful: set[Key] = set()
        # The Secrets by namespace and name, and when each was seen.
        self._secrets: dict[Key, tuple[Obj, float]] = {}
        self.door = Door(kube, self._note)
        # Whether the cache has what others wrote before this term.
        self.believed = True

    def doubt(self, keys: Iterable[Key]) -> None:
        """Let the next run of each of these keys read from the API server."""
        if self._cache is not None:
            self._doubtful.update(keys)

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._doubtful.discard(key)
        self._secrets.pop(_secret_of(key), None)

    def forget_all(self) -> None:
        """Forget all resources: others may have acted since."""
        self._doubtful.clear()
        self._secrets.clear()

    async def remembered(self, key: Key) -> View | None:
        """Return what the cache says of a resource, or None if that is not enough."""
        if self._cache is None or not self.believed or key in self._doubtful:
            return None
        resource = self._cache.get(DISAGG_DEPLOYMENT, key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            return None
        family = self._cache.family(key)
        if not family and _secret_of(key) not in self._secrets and not resource.get("status"):
            children = Children({}, [], complete=True)
            return View(resource, children, CreatingDoor(self._kube, self._note_own), fresh=False, first=True)
        pods = [obj for obj in family if obj["kind"] == POD.kind]
        if any(map(is_marked, pods)):
            return None  # workers are spoken to before anything is written
        objects = [obj for obj in family if obj["kind"] != POD.kind]
        objects += [*await self._secret(_secret_of(key)), *await self._attachments(key, resource)]
        children = Children({(str(obj["kind"]), name_of(obj)): obj for obj in objects}, pods)
        return View(resource, children, ClosedDoor(self._kube, self._note), fresh=False)

    async def fresh(self, key: Key) -> View:
        """Read a resource and its children from the API server."""
        self._doubtful.discard(key)
        newest = {r.kind: self._cache.newest(r) for r in KEPT} if self._cache is not None else {}
        resource = await self._kube.get(DISAGG_DEPLOYMENT, *key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            return View(resource, Children({}, []), self.door)
        children = await kids.read(self._kube, key)
        if self._cache is not None:
            self._cache.note(DISAGG_DEPLOYMENT, resource, newest.pop(DISAGG_DEPLOYMENT.kind))
            self._cache.replace_family(key, [*children.objects.values(), *children.pods], newest)
            if (secret := children.get(SECRET.kind, _secret_of(key)[1])) is not None:
                self._note(secret)
        return View(resource, children, self.door)

    async def secret_is_lost(self, key: Key) -> bool:
        """Read the Secret of a resource, and return whether it is another one than is known."""
        name = _secret_of(key)
        if (known := self._secrets.get(name)) is None:
            return False
        found = await self._kube.get(SECRET, *name)
        if self._secrets.get(name) is not known or (found is not None and uid_of(found) == uid_of(known[0])):
            return False
        del self._secrets[name]
        return True

    async def _secret(self, name: Key) -> list[Obj]:
        known = self._secrets.get(name)
        if known is None or self._clock() - known[1] > _SECRET_HOLDS_S:
            found = await self._kube.get(SECRET, *name)
            if found is None:
                return []
            known = self._secrets[name] = found, self._clock()
        return [known[0]]

    async def _attachments(self, key: Key, resource: Obj) -> list[Obj]:
        """List the networks of a resource, which are not watched: their API may be missing.

        One that the spec does not ask for any more went when that was written.
        """
        if not (resource["spec"].get("kvTransfer") or {}).get("network"):
            return []
        return await self._kube.list(NETWORK_ATTACHMENT, key[0], f"{LABEL_DEPLOYMENT}={key[1]}")

    def _note(self, answer: Obj) -> None:
        resource = resource_of(answer)
        if resource is SECRET and self._cache is not None:
            self._secrets[str(namespace_of(answer)), name_of(answer)] = answer, self._clock()
        elif self._cache is not None and is_kept(resource, answer):
            self._cache.note(resource, answer)

    def _note_own(self, answer: Obj) -> None:
        """Note what a new resource gets. Its watch event is no news."""
        self._note(answer)
        if self._cache is not None and is_kept(resource_of(answer), answer):
            self._cache.put(resource_of(answer), answer)


def _secret_of(key: Key) -> Key:
    return key[0], key_secret_name(key[1])
