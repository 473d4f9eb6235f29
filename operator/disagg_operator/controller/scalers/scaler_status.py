"""PURE: The status of a DisaggScaler: what was found, decided and done, and what is in the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.controller.decision_report import last_decision
from disagg_operator.status.events import NORMAL, WARNING, Note
from disagg_operator.status.scaling_verdicts import OBJECTIVES_FEASIBLE, OBJECTIVES_INFEASIBLE, objectives_feasible
from disagg_operator.status.stamping import FALSE, TRUE, UNKNOWN, Condition, stamped
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import ROLES

TARGET_OWNED = "TargetOwned"
_NO_DECISION = "NoDecision"
_READY = "Ready"
Trouble = tuple[str, str]  # reason and message


@dataclass(frozen=True, slots=True)
class PoolFound:
    """One pool of a DisaggScaler, as far as it was found."""

    replicas: int
    ready: int
    set_by: str | None = None
    """Who else sets its replicas."""
    decision: Decision | None = None
    fresh: bool = False
    """Whether the decision is of this look, and not of an earlier one."""


@dataclass(frozen=True, slots=True)
class ScalerFindings:
    """One look at a DisaggScaler."""

    active: bool
    refused: Trouble | None = None
    """Why the resource cannot be carried out."""
    unscalable: Trouble | None = None
    """Why the targets cannot be scaled as they are."""
    blind: Trouble | None = None
    """Why there are no metrics."""
    pools: Mapping[str, PoolFound] = field(default_factory=dict)

    @property
    def owned(self) -> str:
        """The others that set a target, in a sentence; "" if nobody does."""
        return "; ".join(f"{role} is set by {pool.set_by}" for role, pool in self.pools.items() if pool.set_by)

    @property
    def may_scale(self) -> bool:
        """Whether decisions are carried out."""
        return self.active and self.refused is None and self.unscalable is None and not self.owned

    @property
    def at_zero(self) -> bool:
        """Whether somebody has set a target to 0, which stays so."""
        return any(pool.replicas == 0 for pool in self.pools.values())


def scaler_status(found: ScalerFindings, previous: Mapping[str, Any], generation: int, now: str) -> Obj:
    """Return the new status."""
    able, scaling = _able(found), _scaling(found)
    stored = {str(pool.get("name")): pool for pool in previous.get("pools") or []}
    status: Obj = {
        "observedGeneration": generation,
        "conditions": stamped(
            [_ready(found, able, scaling), able, scaling, *_feasible(found)], previous, generation, now
        ),
    }
    pools = []
    for role in ROLES:
        if (pool := found.pools.get(role)) is not None:
            wanted = _recommended(pool)
            status[role] = str(pool.replicas) if wanted == pool.replicas else f"{pool.replicas} -> {wanted}"
            pools.append(_pool(role, pool, stored.get(role, {}), found.may_scale, now))
    return status | ({"pools": pools} if pools else {})


def _recommended(pool: PoolFound) -> int:
    return pool.replicas if pool.decision is None else pool.decision.to


def _pool(role: str, pool: PoolFound, stored: Mapping[str, Any], may_scale: bool, now: str) -> Obj:
    out: Obj = {"name": role, "current": pool.replicas, "ready": pool.ready, "recommended": _recommended(pool)}
    if pool.set_by:
        out["setBy"] = pool.set_by
    made = pool.decision if pool.fresh else None
    if (decision := last_decision(stored.get("lastDecision"), made, not may_scale, now)) is not None:
        out["lastDecision"] = decision
    return out


def _ready(found: ScalerFindings, able: Condition, scaling: Condition) -> Condition:
    kind = _READY
    if found.refused is not None:
        return Condition(kind, FALSE, *found.refused)
    # While nothing is written, it does no harm that somebody else does.
    if able.status == FALSE and (found.active or able.reason != TARGET_OWNED):
        return Condition(kind, FALSE, able.reason, able.message)
    if scaling.status != TRUE:
        return Condition(kind, scaling.status, scaling.reason, scaling.message)
    if found.active:
        return Condition(kind, TRUE, "Scaling", "both targets follow the load")
    return Condition(kind, TRUE, "Recommending", "mode Shadow: what is recommended is not carried out")


def _able(found: ScalerFindings) -> Condition:
    kind = "AbleToScale"
    if found.refused is not None:
        return Condition(kind, UNKNOWN, found.refused[0], "the resource is refused")
    if found.unscalable is not None:
        return Condition(kind, FALSE, *found.unscalable)
    if found.owned:
        return Condition(kind, FALSE, TARGET_OWNED, f"{found.owned}: nothing else may set it meanwhile")
    return Condition(kind, TRUE, "TargetsFree", "nobody else sets the targets")


def _scaling(found: ScalerFindings) -> Condition:
    kind = "ScalingActive"
    if found.refused is not None or found.unscalable is not None:
        return Condition(kind, FALSE, _NO_DECISION, "nothing is decided while the targets are not known")
    if found.at_zero:
        words = "a target is set to 0, which stays so until somebody sets it to another number"
        return Condition(kind, FALSE, "ScaledToZero", words)
    if found.blind is not None:
        return Condition(kind, FALSE, *found.blind)
    blind = [role for role, pool in found.pools.items() if pool.decision is not None and pool.decision.blind]
    if blind:
        return Condition(
            kind, FALSE, "MetricsUnavailable", f"no usable metrics of {', '.join(blind)}: replicas are held"
        )
    if any(pool.decision is None for pool in found.pools.values()):
        return Condition(kind, UNKNOWN, _NO_DECISION, "the first decision needs two looks at the metrics")
    return Condition(kind, TRUE, "MetricsFound", "decisions follow the load")


def _feasible(found: ScalerFindings) -> list[Condition]:
    """Return whether the pools can meet their objectives; nothing while that is unknown."""
    unmet = {role: None if pool.decision is None else pool.decision.unmet for role, pool in found.pools.items()}
    return [Condition(OBJECTIVES_FEASIBLE, *told) for told in (objectives_feasible(unmet),) if told is not None]


def scaler_news(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Note]:
    """Return the Events for the changes between two statuses.

    They tell if the resource has ceased to work for a new reason, or works again, and if its
    objectives have turned out to be out of reach.
    """
    notes = []
    for kind in (_READY, OBJECTIVES_FEASIBLE):
        old, new = (_condition(status, kind) for status in (before, after))
        if (old.get("status"), old.get("reason")) == (new.get("status"), new.get("reason")):
            continue
        if kind == _READY and new["status"] != UNKNOWN:
            notes.append(Note(NORMAL if new["status"] == TRUE else WARNING, new["reason"], new["message"]))
        elif new.get("reason") == OBJECTIVES_INFEASIBLE:
            notes.append(Note(WARNING, OBJECTIVES_INFEASIBLE, f"{kind}: {new['message']}"))
    return notes


def _condition(status: Mapping[str, Any], kind: str) -> dict[str, str]:
    return next((dict(c) for c in status.get("conditions") or [] if c.get("type") == kind), {})
