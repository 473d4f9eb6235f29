"""Tells once how drains have ended, whichever operator leads.

What is told is first written on the pod; only whoever has written it tells it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from disagg_operator.controller import drain_ends
from disagg_operator.controller.drain_ends import DrainEnd
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, KubeError, NotFound, NotLeading
from disagg_operator.kube.resources import POD, name_of, namespace_of, uid_of
from disagg_operator.status.events import Note
from disagg_operator.vocabulary import Key, Obj

log = logging.getLogger(__name__)
# How many pods may wait here, and how many ends are remembered: a watch may be late.
_MOST_PODS, _REMEMBERED = 4096, 4096
_ATTEMPTS, _PAUSE_S = 5, 1.0


class DrainTeller:
    """What is to be told of drains.

    `count` gets the component of each end, the requests that were cut off, and whether it was
    killed; `note` gets the Event for the resources, and `wake` those for which there is one.
    """

    def __init__(
        self,
        kube: Kube,
        count: Callable[[str, int | None, bool], None],
        note: Callable[[Iterable[Key], Note | None], None],
        wake: Callable[[Key], None],
        *,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._kube = kube
        self._count = count
        self._note = note
        self._wake = wake
        self._pause_s = pause_s
        self._waiting: dict[str, tuple[Obj, frozenset[Key]]] = {}
        self._known: dict[tuple[str, str], None] = {}
        self._news = asyncio.Event()

    def saw(self, pod: Obj, keys: Iterable[Key]) -> None:
        """Note a pod of these resources that may have something to tell."""
        if not drain_ends.ends_in(pod):
            return
        if uid_of(pod) not in self._waiting and len(self._waiting) >= _MOST_PODS:
            log.warning("too many pods have ended: nothing is told of %s", name_of(pod))
            return
        self._waiting[uid_of(pod)] = (pod, frozenset(keys))
        self._news.set()

    async def run(self, listed: Mapping[Key, Sequence[Obj]]) -> None:
        """Tell until cancelled, beginning with the pods that are there."""
        self._waiting.clear()
        for key, pods in listed.items():
            for pod in pods:
                self.saw(pod, (key,))
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                uid = next(iter(self._waiting))
                await self._tell(*self._waiting.pop(uid))

    async def _tell(self, pod: Obj, keys: frozenset[Key]) -> None:
        """Write on a pod what is to be told of it, and tell it."""
        newest = pod
        for _ in range(_ATTEMPTS):
            try:
                if ends := self._untold(newest):
                    await self._write_down(newest, ends)
                self._told(pod, keys, ends)
                return
            except Conflict:
                # Another operator may have told it since.
                newest = await self._read(pod) or pod
            except NotFound:
                break  # nobody else can tell it any more
            except NotLeading:
                return
            except KubeError as error:
                log.warning("pod %s: what its drain came to is not written down: %s", name_of(pod), error)
                await asyncio.sleep(self._pause_s)
        self._told(pod, keys, self._untold(newest))

    def _untold(self, pod: Obj) -> list[DrainEnd]:
        return [end for end in drain_ends.ends_in(pod) if (uid_of(pod), end.word) not in self._known]

    async def _write_down(self, pod: Obj, ends: Iterable[DrainEnd]) -> None:
        annotations = drain_ends.told_with(pod, (end.word for end in ends))
        metadata = {"resourceVersion": pod["metadata"].get("resourceVersion"), "annotations": annotations}
        await self._kube.merge(POD, namespace_of(pod), name_of(pod), {"metadata": metadata})

    async def _read(self, pod: Obj) -> Obj | None:
        """Return a pod as it is now, or None if it is gone or cannot be read."""
        try:
            found = await self._kube.get(POD, namespace_of(pod), name_of(pod))
        except KubeError:
            return None
        return found if found is not None and uid_of(found) == uid_of(pod) else None

    def _told(self, pod: Obj, keys: frozenset[Key], ends: Iterable[DrainEnd]) -> None:
        for end in ends:
            self._known = dict.fromkeys([*self._known, (uid_of(pod), end.word)][-_REMEMBERED:])
            self._count(end.component, end.cut, end.killed)
            if (note := end.note) is not None:
                log.warning("%s", note.message)
                self._note(keys, note)
                for key in keys:
                    self._wake(key)
