"""PURE: The owner of a pool's number of replicas, and the number that is written.

There is one number, `DisaggPool.spec.replicas`, and one writer at a time:

- the operator's autoscaler, if the pool declares `autoscaling`;
- otherwise the last writer of /scale (`kubectl scale`, an HPA, KEDA), until the declared `replicas`
  itself changes. An annotation on the pool holds the declared value that was applied last;
- `scaling.scaleToZero`, which takes both pools to 0 and back in one run.

Workers of one pool alone can serve nothing. A pool of 0 beside one that has workers therefore keeps
one worker: its number stays as it was written, and is carried out once the other one is 0 as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_operator.desired.pool_marks import (
    AUTOSCALED,
    SUSPENDED,
    ZERO,
    Mark,
    at_zero,
    leaves_zero,
    mark_of,
    replicas_of,
)
from disagg_operator.vocabulary import FIELD_MANAGER, Obj
from disagg_wire.roles import ROLES

OWNER_SPEC = "spec"
OWNER_AUTOSCALER = "autoscaler"
OWNER_ZERO = "scaleToZero"
_MAX_OWNER = 63


@dataclass(frozen=True, slots=True)
class Declared:
    """The size that the resource declares for one pool: either fixed `replicas` or bounds."""

    replicas: int = 1
    bounds: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Replicas:
    """The number to write, its owner, and the value of the annotation (None: no annotation)."""

    count: int
    owner: str
    declared: str | None
    kept: int = 0
    """The workers that stay although the number is 0, because the other pool has some."""

    @property
    def size(self) -> int:
        """The number of workers that the pool shall have."""
        return self.count or self.kept


@dataclass(frozen=True, slots=True)
class ZeroOrder:
    """What scaling to zero asks of both pools now; the default is a spec that does not allow it."""

    allowed: bool = False
    sleep: bool = False
    """Whether the deployment has been idle for long enough."""
    wake: bool = False
    """Whether a request waits for workers, or workers are due for another reason."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The size with which a pool comes back that is autoscaled, by role."""


def decide_both(
    declared: Mapping[str, Declared],
    pools: Mapping[str, Obj | None],
    wanted: Mapping[str, int | None],
    zero: ZeroOrder = ZeroOrder(),
    *,
    suspended: bool = False,
) -> dict[str, Replicas]:
    """Decide the number of replicas of both pools, by role.

    `pools` are the DisaggPools as they are, and `wanted` the autoscaler's decisions that are still
    to be carried out.
    """
    found = {
        role: decide(declared[role], pools[role], wanted[role], suspended=suspended, woken=zero.sizes.get(role, 1))
        for role in ROLES
    }
    if suspended:
        return found
    nobody = not any(r.count for r in found.values())
    found = {role: r if r.count or nobody else replace(r, kept=1) for role, r in found.items()}
    sleep = zero.sleep and not leaves_zero(pools.values())
    rests = (at_zero(pools.values()) or sleep or nobody) and not zero.wake
    if zero.allowed and rests:
        return {role: _resting(declared[role], found[role], zero.sizes.get(role, 1)) for role in ROLES}
    if zero.allowed and nobody:
        return {role: replace(r, count=_at_rest(declared[role], r, 1)) for role, r in found.items()}
    return found


def _resting(declared: Declared, found: Replicas, size: int) -> Replicas:
    """Return the replicas of a pool at zero; `size` is the one with which it comes back."""
    saved = _at_rest(declared, found, size)
    return Replicas(0, OWNER_ZERO, Mark(found.declared or AUTOSCALED, ZERO, saved).text)


def _at_rest(declared: Declared, found: Replicas, size: int) -> int:
    """Return with how many workers a pool comes back."""
    return size if declared.bounds is not None else found.size or declared.replicas or 1


def decide(
    declared: Declared, pool: Obj | None, wanted: int | None, *, suspended: bool = False, woken: int | None = None
) -> Replicas:
    """Decide the number of replicas of one pool on its own.

    `pool` is the DisaggPool as it is, and `wanted` the autoscaler's decision if one is still to be
    carried out. An autoscaled pool comes back from zero with `woken` workers.
    """
    mark, live = mark_of(pool), replicas_of(pool)
    rested = mark.why == ZERO and not live
    if mark.saved is not None and (rested or mark.why == SUSPENDED):
        live = mark.saved
    if suspended:
        initial = declared.bounds[0] if declared.bounds is not None else declared.replicas
        kept = live if live is not None else initial
        before = mark.declared or (AUTOSCALED if declared.bounds else str(declared.replicas))
        return Replicas(0, OWNER_SPEC, Mark(before, SUSPENDED, kept).text)
    if declared.bounds is not None:
        low, high = declared.bounds
        if rested and woken is not None:
            live, wanted = woken, None
        # Taking over a running pool starts from its current size, never from a default.
        count = wanted if wanted is not None else live if live is not None else low
        return Replicas(min(max(count, low), high), OWNER_AUTOSCALER, None)
    text = str(declared.replicas)
    if pool is None or live is None or mark.declared != text:
        return Replicas(declared.replicas, OWNER_SPEC, text)
    return Replicas(live, OWNER_SPEC if live == declared.replicas else scale_owner(pool), text)


def scale_owner(pool: Obj) -> str:
    """Return the field manager other than the operator that wrote spec.replicas last."""
    owner, latest = OWNER_SPEC, ""
    for entry in pool["metadata"].get("managedFields") or []:
        fields: Mapping[str, Any] = entry.get("fieldsV1") or {}
        time = str(entry.get("time", ""))
        if entry.get("manager") != FIELD_MANAGER and "f:replicas" in (fields.get("f:spec") or {}) and time >= latest:
            owner, latest = str(entry.get("manager", OWNER_SPEC))[:_MAX_OWNER], time
    return owner
