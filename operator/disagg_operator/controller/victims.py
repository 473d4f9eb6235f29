"""PURE: Which workers go when a workload becomes smaller, and when they may be deleted.

A worker that is ready is marked first: from then on it gets no new requests, and it is deleted when
it has said that it has none, or when the time of the mark is over. The mark is an annotation on the
pod, so that an operator that is killed finds it again, and its deletion cost makes the ReplicaSet
delete exactly the marked pods. A marked worker that may stay is called back.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_operator.controller import decision_report
from disagg_operator.kube.pods import DRAIN_UNTIL, address_of, epoch_s, is_ready, is_terminating
from disagg_operator.kube.resources import annotations_of, name_of, uid_of
from disagg_operator.vocabulary import Obj

# What a worker says that was told to take nothing new.
IDLE = "idle"
BUSY = "busy"
# It cannot be told, or does not answer: it drains when it gets SIGTERM.
UNABLE = "unable"

# Lower than the cost of any pod that stays, and lower still once a pod need not be waited for: as
# long as others are, exactly those go.
_COST, _FREE_COST = "-1000000", "-2000000"
# Two looks at the clock may differ by so much without a change of the mark.
_TOLERANCE_S = 2.0
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


@dataclass(frozen=True, slots=True)
class Victims:
    """The pods of one workload that are to go, and those that need not go any more."""

    going: tuple[Obj, ...] = ()
    called_back: tuple[Obj, ...] = ()


def chosen(pods: Sequence[Obj], wanted: int, loads: Mapping[str, float]) -> Victims:
    """Return which pods of a workload go if it is to have `wanted`.

    They are those that its ReplicaSet deletes first: pods without a node, then those that are not
    ready. Of the others, those that drain already go, and then the least loaded. `loads` holds the
    requests of each pod; one whose load is unknown counts as much as the busiest.
    """
    here = [pod for pod in pods if not is_terminating(pod)]
    highest = max(loads.values(), default=0.0)

    def rank(pod: Obj) -> tuple[bool, int, bool, bool, float, str]:
        phase = _PHASES.get(str((pod.get("status") or {}).get("phase")), 1)
        placed = bool((pod.get("spec") or {}).get("nodeName"))
        return placed, phase, is_ready(pod), not is_marked(pod), loads.get(name_of(pod), highest), name_of(pod)

    order = sorted(here, key=rank)
    going = order[: max(0, len(order) - wanted)]
    return Victims(tuple(going), tuple(pod for pod in order[len(going) :] if is_marked(pod)))


def can_drain(pod: Obj) -> bool:
    """Return whether a pod serves requests that it may finish."""
    return is_ready(pod) and bool(address_of(pod))


def mark(pod: Obj, timeout_s: float, now_s: float, *, idle: bool = False) -> dict[str, str]:
    """Return the annotations to write on a pod that is to go; none if they are there.

    A mark of another clock, or of a longer timeout, is written anew. `idle` is set once the worker
    has no requests.
    """
    left_s = epoch_s(annotations_of(pod).get(DRAIN_UNTIL)) - now_s
    if left_s <= timeout_s + _TOLERANCE_S:
        free = idle or left_s <= 0
        cheap = not free or annotations_of(pod).get(decision_report.DELETION_COST) == _FREE_COST
        return {} if cheap else {decision_report.DELETION_COST: _FREE_COST}
    until = datetime.datetime.fromtimestamp(now_s + timeout_s, datetime.UTC).isoformat(timespec="seconds")
    return {DRAIN_UNTIL: until.replace("+00:00", "Z"), decision_report.DELETION_COST: _FREE_COST if idle else _COST}


def unmark() -> dict[str, None]:
    """Return the change of annotations of a pod that is called back."""
    return {DRAIN_UNTIL: None, decision_report.DELETION_COST: None}


def left_s(pod: Obj, now_s: float) -> float:
    """Return the seconds until a marked pod is deleted whatever it says."""
    return max(0.0, epoch_s(annotations_of(pod).get(DRAIN_UNTIL)) - now_s)


def waiting(going: Sequence[Obj], said: Mapping[str, str], now_s: float) -> list[Obj]:
    """Return those that may not be deleted yet. `said` has what workers said, by the pod's uid."""
    busy = [pod for pod in going if can_drain(pod) and said.get(uid_of(pod)) == BUSY]
    return [pod for pod in busy if left_s(pod, now_s) > 0]


def need_a_price(going: Sequence[Obj]) -> bool:
    """Return whether marks alone do not tell the ReplicaSet which pods go.

    Some have none, or pods that are still to come are too many.
    """
    return not going or not all(map(is_marked, going))


def is_marked(pod: Obj) -> bool:
    """Return whether a pod has been told to go."""
    return DRAIN_UNTIL in annotations_of(pod)
