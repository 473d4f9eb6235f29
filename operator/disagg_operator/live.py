"""What the operator knows from moment to moment and never stores: filled by the scrape loop, read by reconcile.

All of it can be lost: after a restart the first sweep fills it again, before the first reconcile runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_operator.autoscaling.policy import Decision, PoolPolicy, State
from disagg_operator.observe import RouterView
from disagg_operator.queue import Key


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What a resource says of scaling. `policies` holds the pools that the operator scales."""

    policies: Mapping[str, PoolPolicy]
    prometheus_url: str | None = None
    dry_run: bool = False
    suspended: bool = False


@dataclass(slots=True)
class Scaling:
    """One autoscaled pool."""

    state: State = field(default_factory=State)
    decision: Decision | None = None


@dataclass(slots=True)
class Live:
    """One DisaggDeployment. `loads`: requests by pod at the last look."""

    uid: str = ""
    bearer: str | None = None
    view: RouterView | None = None
    view_at: float = float("-inf")
    pools: dict[str, Scaling] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)


class LiveTable:
    """`Live` by key; an object that was made anew under an old name starts empty."""

    def __init__(self) -> None:
        self._entries: dict[Key, Live] = {}

    def of(self, key: Key, uid: str) -> Live:
        entry = self._entries.get(key)
        if entry is None or entry.uid != uid:
            entry = self._entries[key] = Live(uid)
        return entry

    def forget_all_but(self, keys: frozenset[Key]) -> None:
        for key in [k for k in self._entries if k not in keys]:
            del self._entries[key]
