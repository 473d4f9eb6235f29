"""PURE: The Events about a DisaggDeployment, which are few and never repeat each other.

An Event with the same reason about the same object is sent at most every ten minutes; one about
scaling, or about a worker that goes, is sent whenever its message differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_operator.vocabulary import Obj

NORMAL = "Normal"
WARNING = "Warning"
COMPONENT = "disagg-operator"
QUIET_S = 600.0
ALWAYS_IF_DIFFERENT = frozenset({"ScaledUp", "ScaledDown", "RoleFlipped", "DrainTimedOut", "DrainUnanswered"})
_MAX_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Note:
    """A note to the user about one object, to be sent as an Event."""

    type: str
    reason: str
    message: str


@dataclass(slots=True)
class EventLimiter:
    """A record of the last note of each (uid, reason) pair, for at most `max_entries` pairs."""

    max_entries: int = 10_000
    _said: dict[tuple[str, str], tuple[float, str]] = field(default_factory=dict)

    def allows(self, uid: str, note: Note, now: float) -> bool:
        """Return whether to send `note` at monotonic time `now`, and record it if so."""
        key = (uid, note.reason)
        last = self._said.get(key)
        differs = note.reason in ALWAYS_IF_DIFFERENT and last is not None and last[1] != note.message
        if last is not None and now - last[0] < QUIET_S and not differs:
            return False
        self._said.pop(key, None)  # the entry moves to the end, because the oldest is dropped first
        self._said[key] = (now, note.message)
        while len(self._said) > self.max_entries:
            del self._said[next(iter(self._said))]
        return True


def event_object(about: Obj, note: Note, timestamp: str, suffix: str) -> Obj:
    """Return a core/v1 Event about an object.

    `timestamp` is a time in RFC 3339; `suffix` makes the name of the Event unique.
    """
    meta = about["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{meta['name'][:200]}.{suffix}", "namespace": meta["namespace"]},
        "involvedObject": {
            "apiVersion": about["apiVersion"],
            "kind": about["kind"],
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta.get("uid", ""),
            "resourceVersion": meta.get("resourceVersion", ""),
        },
        "type": note.type,
        "reason": note.reason,
        "message": note.message[:_MAX_MESSAGE],
        "firstTimestamp": timestamp,
        "lastTimestamp": timestamp,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
    }
