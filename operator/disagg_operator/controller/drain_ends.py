"""PURE: What the processes of pods said of their drain when they ended, each told once.

It stands in the termination message of a container, and so in the pod's status from the end of the
container until the pod is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from disagg_operator.kube.pods import is_terminating
from disagg_operator.kube.resources import labels_of, name_of, uid_of
from disagg_operator.status.events import WARNING, Note
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.drain_report import cut_of
from disagg_wire.labels import LABEL_COMPONENT, ROUTER

DRAIN_TIMED_OUT = "DrainTimedOut"
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class DrainEnd:
    """The end of one process."""

    pod: str
    component: str
    """One of "prefill", "decode" and "router"."""
    cut: int
    """The requests that it had to cut off."""

    @property
    def note(self) -> Note | None:
        """The Event that tells of requests that were cut off."""
        if self.cut == 0:
            return None
        lost = self.component == ROUTER
        what = "they are lost" if lost else "routers continue them on other workers, if there are any"
        head = f"{self.component} {self.pod}: requests cut off at the end of its drain: {self.cut}"
        return Note(WARNING, DRAIN_TIMED_OUT, f"{head}; {what}")


class DrainEnds:
    """The ends that have been told.

    `count` gets the component and the number of requests that were cut off, `note` the Event.
    """

    def __init__(self, count: Callable[[str, int], None], note: Callable[[Iterable[Key], Note | None], None]) -> None:
        self._count = count
        self._note = note
        self._known: dict[tuple[str, str], None] = {}

    def saw(self, pod: Obj, keys: Iterable[Key]) -> None:
        """Tell what a pod of these resources says for the first time."""
        if (end := self.new_in(pod)) is not None:
            self._count(end.component, end.cut)
            self._note(keys, end.note)

    def new_in(self, pod: Obj) -> DrainEnd | None:
        """Return what a pod that terminates tells for the first time."""
        if not is_terminating(pod):
            return None
        for container in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (container.get("state") or {}).get("terminated") or {}
            cut = cut_of(str(ended.get("message") or "")) if isinstance(ended, Mapping) else None
            which = (uid_of(pod), str(container.get("name")))
            if cut is not None and which not in self._known:
                self._known = dict.fromkeys([*self._known, which][-_REMEMBERED:])
                return DrainEnd(name_of(pod), labels_of(pod).get(LABEL_COMPONENT, ""), cut)
        return None
