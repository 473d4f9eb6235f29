"""What the operator knows from moment to moment and never stores: filled by the scrape loop, read
by reconcile.

All of it can be lost: after a restart the first sweep fills it again, before the first reconcile
runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.queue_depth import QueueMemory
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.signals.fold import Memory
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.status.observed import RouterView
from disagg_operator.vocabulary import Key


@dataclass(slots=True)
class Scaling:
    """One autoscaled pool."""

    state: QueueMemory = field(default_factory=QueueMemory)
    decision: Decision | None = None


@dataclass(slots=True)
class Live:
    """One DisaggDeployment.

    `loads`: requests by pod at the last look; `loaded`: what the policy learned before the
    operator's start is in `predicting` (`unseeded`: it knows nothing of the days before yet), of
    which `unsaved` says whether anything is to be kept since epoch time `saved_s`; `trouble`:
    (reason, words) why its Prometheus could not be read at the last look.
    """

    uid: str = ""
    bearer: str | None = None
    view: RouterView | None = None
    view_at: float = float("-inf")
    pools: dict[str, Scaling] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    starts: dict[str, Starts] = field(default_factory=dict)
    predicting: Predicting = field(default_factory=Predicting)
    flip: Flip | None = None
    flips_s: tuple[float, ...] = ()  # how long the last moves took
    loaded: bool = False
    unseeded: bool = False
    unsaved: bool = False
    saved_s: float = float("-inf")
    loads: dict[str, float] = field(default_factory=dict)
    trouble: tuple[str, str] | None = None


class LiveTable:
    """`Live` by key; an object that was made anew under an old name starts empty."""

    def __init__(self) -> None:
        self._entries: dict[Key, Live] = {}

    def of(self, key: Key, uid: str) -> Live:
        entry = self._entries.get(key)
        if entry is None or entry.uid != uid:
            entry = self._entries[key] = Live(uid)
        return entry

    def forget_all_but(self, keys: frozenset[Key]) -> list[Key]:
        """Gives what was forgotten."""
        gone = [k for k in self._entries if k not in keys]
        for key in gone:
            del self._entries[key]
        return gone

    def items(self) -> list[tuple[Key, Live]]:
        return list(self._entries.items())
