"""What the operator knows from moment to moment and never stores: filled by the scrape loop, read
by reconcile.

All of it can be lost: after a restart the first sweep fills it again, before the first reconcile
runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.status.workloads import RouterView
from disagg_operator.vocabulary import Key


@dataclass(slots=True)
class Live:
    """One DisaggDeployment."""

    uid: str = ""
    bearer: str | None = None
    """The token that opens /internal/ on the pods; None until it is known, or when it was refused."""
    view: RouterView | None = None
    """What the routers said of the pairs at the last look."""
    view_at: float = float("-inf")
    """When they said it, on the monotonic clock."""
    decisions: dict[str, Decision] = field(default_factory=dict)
    """The last decision for each pool that is scaled, to be carried out by the reconcile."""
    memory: PolicyMemory = field(default_factory=PolicyMemory)
    """What the policies remember from step to step."""
    starts: dict[str, Starts] = field(default_factory=dict)
    """How long the last pods of each pool took to start."""
    flip: Flip | None = None
    """The move of a worker between the pools that is under way."""
    flips_s: tuple[float, ...] = ()
    """How long the last moves took, in seconds."""
    loads: dict[str, float] = field(default_factory=dict)
    """Requests by pod at the last look."""
    trouble: tuple[str, str] | None = None
    """(reason, words) why the Prometheus of this deployment could not be read at the last look."""
    loaded: bool = False
    """Whether the state from before the operator's last start has been read."""
    unseeded: bool = False
    """Whether the policy knows nothing of the days before yet."""
    unsaved: bool = False
    """Whether the policy has learned something since the state was last saved."""
    saved_s: float = float("-inf")
    """When the state was last saved, in seconds since 1970."""


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
