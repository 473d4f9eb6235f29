"""PURE: The marks in a pool's annotation of declared replicas.

The annotation holds the declared number that was applied last. While a pool has no workers because
its deployment is suspended or scaled to zero, it also holds why, and the number from before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from disagg_operator.kube.resources import annotations_of
from disagg_operator.vocabulary import Obj

DECLARED_ANNOTATION = "disagg.dev/declared-replicas"
SUSPENDED, ZERO = "suspended", "zero"
# The declared number of a pool that is autoscaled.
AUTOSCALED = "-"


@dataclass(frozen=True, slots=True)
class Mark:
    """The content of the annotation."""

    declared: str | None
    """The declared number as text, "-" if the pool is autoscaled; None if it is not known."""
    why: str = ""
    """`suspended` or `zero` for a pool without workers, otherwise empty."""
    saved: int | None = None
    """The replicas from before; None for a pool that is neither."""

    @property
    def text(self) -> str:
        return f"{self.why}:{self.declared}:{self.saved}" if self.why else str(self.declared)


def mark_of(pool: Obj | None) -> Mark:
    """Return the mark of a pool; that of one which does not exist says nothing."""
    text = None if pool is None else annotations_of(pool).get(DECLARED_ANNOTATION)
    why, found, rest = (text or "").partition(":")
    declared, _, count = rest.rpartition(":")
    if found and why in (SUSPENDED, ZERO) and count.isdigit():
        return Mark(declared, why, int(count))
    return Mark(text)


def replicas_of(pool: Obj | None) -> int | None:
    """Return the number of replicas of a pool, or None if it has none."""
    value = None if pool is None else (pool.get("spec") or {}).get("replicas")
    return value if isinstance(value, int) and value >= 0 else None


def leaves_zero(pools: Iterable[Obj | None]) -> bool:
    """Return whether somebody has scaled up a pool that is at zero."""
    return any(mark_of(pool).why == ZERO and replicas_of(pool) for pool in pools)


def at_zero(pools: Iterable[Obj | None]) -> bool:
    """Return whether all pools of a deployment are scaled to zero.

    One that has workers again, or has lost its mark, is to be served by all.
    """
    found = list(pools)
    return bool(found) and all(mark_of(pool).why == ZERO and replicas_of(pool) == 0 for pool in found)
