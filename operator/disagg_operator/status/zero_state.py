"""PURE: What status says of a deployment both of whose pools are scaled to zero.

That is a healthy state: nobody asks, and whoever does is served. Tools that wait for `Ready` must
not take it for a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from disagg_operator.kube.pods import epoch_s
from disagg_operator.rollout.telling import CANARY_FAILED, CANARY_INCONCLUSIVE, COMPLETE, PAUSED, ROLLED_BACK, STALLED
from disagg_operator.vocabulary import Obj

SCALED_TO_ZERO = "ScaledToZero"
IDLE, BY_HAND = "Idle", "PoolsSetToZero"
SERVED_NEXT = "the next request is held by the routers, and both pools wake for it"

# Why a deployment that nobody asks for does not go to zero. Of a rollout, it is its own reason.
DRY_RUN, PEAK, ROLE_FLIP, ROUTERS_SILENT = "DryRun", "PeakNear", "RoleFlip", "RoutersSilent"
_NOBODY = "nobody has asked for scaling.scaleToZero.idleSeconds, but both pools stay: "
_ROLLOUT_WORDS = {
    CANARY_INCONCLUSIVE: "the canary waits for a person: `disagg rollout resume` or `disagg rollout undo`",
    PAUSED: "the rollout is paused: `disagg rollout resume` goes on with it",
    STALLED: "the rollout has stalled, and its new revision has not served: edit the spec, or `disagg rollout undo`",
}
# The old revision serves again, and nothing follows until the spec is edited.
_GONE_BACK = (ROLLED_BACK, CANARY_FAILED)


def reason_of(idle_s: float, limit_s: float, stored: Mapping[str, Any]) -> tuple[str, str]:
    """Return the reason and the message of a deployment at zero.

    `idle_s` is for how long nobody had asked when it went there, or NaN if that is not known; later
    on, the stored status knows it.
    """
    for old in _conditions(stored):
        if old.get("type") == SCALED_TO_ZERO and old.get("status") == "True":
            return str(old.get("reason")), str(old.get("message"))
    if idle_s >= limit_s:
        return IDLE, f"no request for {idle_s:.0f} s (scaling.scaleToZero.idleSeconds: {limit_s:g}); {SERVED_NEXT}"
    return BY_HAND, f"both pools were set to 0; {SERVED_NEXT}"


def told(status: Mapping[str, Any], now_s: float) -> str | None:
    """Return since when and why a deployment is at zero, or why it is not although nobody asks, in
    a sentence; None if there is nothing to say. `now_s` is the seconds since 1970.
    """
    for condition in _conditions(status):
        if condition.get("type") == SCALED_TO_ZERO and condition.get("status") == "True":
            since_s = now_s - epoch_s(condition.get("lastTransitionTime"))
            span = "" if math.isnan(since_s) else f" for {_span(max(0.0, since_s))}"
            return f"Both pools are at zero{span}: {condition.get('message')}."
        if condition.get("type") == SCALED_TO_ZERO and condition.get("status") == "False":
            return f"Both pools are not at zero: {condition.get('message')}."
    return None


def _span(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def settled(resource: Obj) -> bool:
    """Return whether nothing moves: the present spec is rolled out, or the one before is back."""
    status = resource.get("status") or {}
    if status.get("observedGeneration") != resource["metadata"].get("generation"):
        return False
    reason = _rollout_of(status)
    return reason == COMPLETE or (reason in _GONE_BACK and all(map(_is_whole, status.get("pools") or [])))


def hindrance(resource: Obj, *, dry_run: bool, due: bool, flips: bool) -> tuple[str, str] | None:
    """Return why a deployment that nobody asks for stays up, as a reason and a message.

    `due` is set while the schedule asks for workers, `flips` while one of them changes its role.
    """
    reason, why = "", ""
    if not settled(resource):
        reason = _rollout_of(resource.get("status") or {}) or "Unknown"
        why = _ROLLOUT_WORDS.get(reason, f"a rollout is not at its end ({reason})")
    elif dry_run:
        reason, why = DRY_RUN, "scaling.dryRun is set"
    elif due:
        reason, why = PEAK, "scaling.schedule asks for workers"
    elif flips:
        reason, why = ROLE_FLIP, "a worker changes its role"
    return (reason, _NOBODY + why) if reason else None


def silence() -> tuple[str, str]:
    """Return why a deployment stays up of whose routers one does not say whether anybody asks."""
    return ROUTERS_SILENT, "a router has not told for scaling.scaleToZero.idleSeconds whether anybody asks"


def _rollout_of(status: Mapping[str, Any]) -> str:
    return next((str(c.get("reason")) for c in _conditions(status) if c.get("type") == "Progressing"), "")


def _is_whole(pool: Mapping[str, Any]) -> bool:
    return pool.get("desired") == pool.get("current") == pool.get("ready")


def serves(status: Mapping[str, Any]) -> bool:
    """Return whether a status says that requests are served by workers."""
    return any(
        c.get("type") == "Available" and c.get("status") == "True" and c.get("reason") != SCALED_TO_ZERO
        for c in _conditions(status)
    )


def _conditions(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [c for c in status.get("conditions") or [] if isinstance(c, dict)]
