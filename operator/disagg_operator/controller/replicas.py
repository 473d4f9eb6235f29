"""PURE: The owner of a pool's number of replicas, and the number that is written.

There is one number, `DisaggPool.spec.replicas`, and one writer at a time:

- the operator's autoscaler, if the pool declares `autoscaling`;
- otherwise the last writer of /scale (`kubectl scale`, an HPA, KEDA), until the declared `replicas`
  itself changes. An annotation on the pool holds the declared value that was applied last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.desired.render import DECLARED_ANNOTATION
from disagg_operator.kube.resources import annotations_of
from disagg_operator.vocabulary import FIELD_MANAGER, Obj

DECLARED = DECLARED_ANNOTATION
_SUSPENDED = "suspended:"
OWNER_SPEC = "spec"
OWNER_AUTOSCALER = "autoscaler"
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


def decide(declared: Declared, pool: Obj | None, wanted: int | None, *, suspended: bool = False) -> Replicas:
    """Decide the number of replicas of one pool.

    `pool` is the DisaggPool as it is, and `wanted` the autoscaler's decision if one is still to be
    carried out.
    """
    mark = None if pool is None else annotations_of(pool).get(DECLARED)
    live = None if pool is None else _live(pool)
    if (saved := _saved(mark)) is not None:
        live, mark = saved  # the values from before the suspension
    if suspended:
        initial = declared.bounds[0] if declared.bounds is not None else declared.replicas
        kept = live if live is not None else initial
        # A pool without a mark is autoscaled, which "-" records.
        return Replicas(0, OWNER_SPEC, f"{_SUSPENDED}{mark or ('-' if declared.bounds else declared.replicas)}:{kept}")
    if declared.bounds is not None:
        low, high = declared.bounds
        # Taking over a running pool starts from its current size, never from a default.
        count = wanted if wanted is not None else live if live is not None else low
        return Replicas(min(max(count, low), high), OWNER_AUTOSCALER, None)
    text = str(declared.replicas)
    if pool is None or live is None or mark != text:
        return Replicas(declared.replicas, OWNER_SPEC, text)
    return Replicas(live, OWNER_SPEC if live == declared.replicas else scale_owner(pool), text)


def _saved(mark: str | None) -> tuple[int, str] | None:
    """Return (replicas, mark) from before a suspension, read from "suspended:<mark>:<replicas>"."""
    if mark is None or not mark.startswith(_SUSPENDED):
        return None
    before, _, count = mark.removeprefix(_SUSPENDED).rpartition(":")
    return (int(count), before) if count.isdigit() else None


def _live(pool: Obj) -> int | None:
    value = (pool.get("spec") or {}).get("replicas")
    return value if isinstance(value, int) and value >= 0 else None


def scale_owner(pool: Obj) -> str:
    """Return the field manager other than the operator that wrote spec.replicas last."""
    owner, latest = OWNER_SPEC, ""
    for entry in pool["metadata"].get("managedFields") or []:
        fields: Mapping[str, Any] = entry.get("fieldsV1") or {}
        time = str(entry.get("time", ""))
        if entry.get("manager") != FIELD_MANAGER and "f:replicas" in (fields.get("f:spec") or {}) and time >= latest:
            owner, latest = str(entry.get("manager", OWNER_SPEC))[:_MAX_OWNER], time
    return owner
