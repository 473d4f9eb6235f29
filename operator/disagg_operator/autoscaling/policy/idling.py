"""PURE: How long nobody has asked anything of a deployment.

Each router reports the seconds since its last request ended. What is not known is never counted as
idle: a router that does not answer, one that has gone with its streams, and the time before this
operator looked for the first time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNKNOWN_S = math.nan
# What was seen longer ago says nothing about now.
SEEN_MAX_AGE_S = 15.0


@dataclass(frozen=True, slots=True)
class Routers:
    """What one look finds of the routers of a deployment."""

    alive: Collection[str]
    """The pods that may hold requests, by their identity; also those that are being ended."""
    states: Sequence[Mapping[str, Any]]
    """The states that the routers have told."""

    @property
    def idle_s(self) -> float:
        """The seconds since the last request of any of them ended, or NaN if one does not say."""
        told = [state.get("idle_s") for state in self.states]
        found = [float(s) for s in told if isinstance(s, int | float) and not isinstance(s, bool) and s >= 0]
        return min(found) if found and len(found) == len(self.alive) else UNKNOWN_S

    @property
    def too_old(self) -> bool:
        """Whether a router answers that is too old to tell whether it is idle."""
        return any("idle_s" not in state for state in self.states)

    @property
    def holding(self) -> bool:
        """Whether a request waits for workers in one of them."""
        held = (state.get("held") for state in self.states)
        return any(isinstance(n, int) and n > 0 for n in held)


@dataclass(frozen=True, slots=True)
class IdleWatch:
    """What is remembered from one look to the next. The empty one is always a safe start."""

    routers: frozenset[str] = frozenset()
    since_s: float = math.nan
    """Since when nothing can have happened that no router tells of."""
    idle_s: float = UNKNOWN_S
    """The seconds for which nobody has asked, as of `at_s`."""
    at_s: float = -math.inf
    too_old: bool = False
    """Whether a router is too old to tell."""
    silent_since_s: float = math.nan
    """Since when one of the routers has not told; NaN if all have, or are too old for it."""

    def silent_s(self, now_s: float) -> float:
        """Return for how long one of the routers has not told; 0 if all have."""
        return 0.0 if math.isnan(self.silent_since_s) else now_s - self.silent_since_s

    def at(self, now_s: float) -> float:
        """Return the seconds for which nobody has asked; NaN if that was not seen just now."""
        return self.idle_s if now_s - self.at_s <= SEEN_MAX_AGE_S else UNKNOWN_S


def watched(before: IdleWatch, routers: Routers, now_s: float, *, serving: bool) -> IdleWatch:
    """Return what is known after one more look.

    While no request can be served (`serving`), nobody can be expected to ask: otherwise, clients
    that come back later would find the pools gone again.
    """
    alive = frozenset(routers.alive)
    lost = bool(before.routers - alive)
    since_s = now_s if math.isnan(before.since_s) or lost or not serving else before.since_s
    idle_s = min(routers.idle_s, now_s - since_s, key=_least)
    too_old = routers.too_old if routers.states else before.too_old
    silent = bool(alive) and math.isnan(routers.idle_s) and not too_old
    silent_since_s = now_s if silent and math.isnan(before.silent_since_s) else before.silent_since_s
    return IdleWatch(alive, since_s, idle_s, now_s, too_old, silent_since_s if silent else math.nan)


def _least(value: float) -> float:
    """Return a key by which NaN is less than any number."""
    return -math.inf if math.isnan(value) else value


def both_or_neither(replicas: Mapping[str, int | None]) -> dict[str, int | None]:
    """Return the workers that pools of these replicas have: one of 0 alone keeps one."""
    some = any(replicas.values())
    return {role: 1 if n == 0 and some else n for role, n in replicas.items()}
