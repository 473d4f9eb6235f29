"""PURE: The status of a resource whose reconcile fails and is tried again."""

from __future__ import annotations

from collections.abc import Mapping

from disagg_operator.status.stamping import FALSE, UNKNOWN, Condition, conditions_of, stamped
from disagg_operator.vocabulary import Obj

# Why a reconcile fails that is tried again: the API server's answer, missing rights, time, a bug.
API_SERVER_ERROR, RIGHT_MISSING, RECONCILE_TIMEOUT, INTERNAL_ERROR = RECONCILE_FAILURES = (
    "APIServerError",
    "RightMissing",
    "ReconcileTimeout",
    "InternalError",
)


def failed(generation: int, reason: str, message: str, previous: Mapping[str, object], now: str) -> Obj:
    """Return the status of a resource whose reconcile fails and is tried again.

    A spec that has not been judged yet is neither accepted nor ready; the rest stays as it was.
    """
    found = [Condition("Reconciled", FALSE, reason, message)]
    if previous.get("observedGeneration") != generation or _unjudged(previous):
        found = [Condition("Accepted", UNKNOWN, reason, message), Condition("Ready", FALSE, reason, message), *found]
    names = [condition.type for condition in found]
    kept = [c for c in conditions_of(previous) if c.get("type") not in names]
    return {
        **previous,
        "observedGeneration": generation,
        "conditions": [*kept, *stamped(found, previous, generation, now)],
    }


def _unjudged(status: Mapping[str, object]) -> bool:
    return any(c.get("type") == "Accepted" and c.get("status") == UNKNOWN for c in conditions_of(status))
