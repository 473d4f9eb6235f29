"""PURE: What becomes known of drains from pods: how their processes ended, and what was cut off.

A process writes the number of its requests into the termination message of its container from the
beginning of its drain on. So the number is also known of one that is killed. It stands in the pod's
status from the end of the container until the pod is gone; of a pod that the kubelet has evicted,
until somebody deletes it. What has been told of a pod stands in an annotation of the pod, so that
the next operator does not tell it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.kube.pods import epoch_s, is_leaving, is_terminating
from disagg_operator.kube.resources import annotations_of, labels_of, name_of
from disagg_operator.status.events import WARNING, Note
from disagg_operator.vocabulary import Obj
from disagg_wire.drain_report import cut_of
from disagg_wire.labels import LABEL_COMPONENT, ROUTER

DRAIN_TIMED_OUT, DRAIN_UNANSWERED = "DrainTimedOut", "DrainUnanswered"
# On a pod: what has been told of its drain, as words that are separated by commas.
TOLD_ANNOTATION = "disagg.dev/drain-told"
UNANSWERED = "unanswered"
_SIGKILL = 137
# The containers that drain: an adapter does so for its engine.
_MAIN, _ADAPTER = "main", "adapter"
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class DrainEnd:
    """The end of one process."""

    word: str
    """What stands in the annotation once it has been told."""
    pod: str
    component: str
    """One of "prefill", "decode" and "router"."""
    cut: int | None
    """The requests that it had to cut off, or had when it was killed; None if it left no word."""
    killed: bool = False
    """Whether it was killed before the end of its drain."""

    @property
    def note(self) -> Note | None:
        """The Event that tells of requests that were cut off."""
        if self.cut == 0:
            return None
        what = (
            "they are lost" if self.component == ROUTER else "routers continue them on other workers, if there are any"
        )
        head = f"{self.component} {self.pod}: requests cut off at the end of its drain: {self.cut}"
        if self.killed:
            number = "nobody knows how many requests it had" if self.cut is None else f"its requests: {self.cut}"
            head = f"{self.component} {self.pod}: killed before the end of its drain; {number}"
        return Note(WARNING, DRAIN_TIMED_OUT, f"{head}; {what}")


def ends_in(pod: Obj) -> list[DrainEnd]:
    """Return what a pod that leaves, or was evicted, says of drains and has not been told yet."""
    if not is_leaving(pod) and (pod.get("status") or {}).get("phase") != "Failed":
        return []
    statuses = [s for s in (pod.get("status") or {}).get("containerStatuses") or [] if isinstance(s, Mapping)]
    speaker = _ADAPTER if any(s.get("name") == _ADAPTER for s in statuses) else _MAIN
    told = told_of(pod)
    found = [end for status in statuses for end in _ends_of(pod, status, speaks=status.get("name") == speaker)]
    return [end for end in found if end.word not in told]


def _ends_of(pod: Obj, status: Mapping[str, Any], *, speaks: bool) -> Iterable[DrainEnd]:
    """Yield the ends of one container: the last one, and the one before."""
    count = status.get("restartCount")
    runs = count if isinstance(count, int) else 0
    for state, run in (("state", runs), ("lastState", runs - 1)):
        ended = (status.get(state) or {}).get("terminated")
        if not isinstance(ended, Mapping):
            continue
        cut, killed = cut_of(str(ended.get("message") or "")), ended.get("exitCode") == _SIGKILL
        mute = cut is None and killed and speaks and state == "state" and _ended_by_drain(pod, ended)
        if cut is not None or mute:
            word = f"{status.get('name')}/{run}"
            yield DrainEnd(word, name_of(pod), labels_of(pod).get(LABEL_COMPONENT, ""), cut, killed)


def _ended_by_drain(pod: Obj, ended: Mapping[str, Any]) -> bool:
    """Return whether a container that left no word ended after the deletion of its pod."""
    meta = pod["metadata"]
    if not is_terminating(pod):
        return False
    grace_s = meta.get("deletionGracePeriodSeconds")
    since_s = epoch_s(meta["deletionTimestamp"]) - (grace_s if isinstance(grace_s, int) else 0)
    # A time that cannot be read is no reason to say nothing.
    return not epoch_s(ended.get("finishedAt")) < since_s


def told_of(pod: Obj) -> frozenset[str]:
    """Return the words for what has been told of a pod."""
    return frozenset(filter(None, annotations_of(pod).get(TOLD_ANNOTATION, "").split(",")))


def told_with(pod: Obj, words: Iterable[str]) -> dict[str, str]:
    """Return the annotation of a pod of which something more is told."""
    return {TOLD_ANNOTATION: ",".join(sorted({*told_of(pod), *words}))}


def unanswered(pods: Iterable[Obj]) -> Note:
    """Return the Event that tells of workers that do not answer when they are told to go."""
    names = sorted(map(name_of, pods))
    shown = ", ".join(names[:_MOST_NAMED]) + (f" and {len(names) - _MOST_NAMED} more" if names[_MOST_NAMED:] else "")
    what = "nobody waits for their requests; what does not end after SIGTERM is cut off"
    return Note(WARNING, DRAIN_UNANSWERED, f"{shown}: no answer to the call to drain, so that {what}")
