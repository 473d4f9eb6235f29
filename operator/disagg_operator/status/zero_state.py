"""PURE: What status says of a deployment both of whose pools are scaled to zero.

That is a healthy state: nobody asks, and whoever does is served. Tools that wait for `Ready` must
not take it for a failure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from disagg_operator.kube.pods import epoch_s
from disagg_operator.rollout.telling import COMPLETE
from disagg_operator.vocabulary import Obj

SCALED_TO_ZERO = "ScaledToZero"
IDLE, BY_HAND = "Idle", "PoolsSetToZero"
SERVED_NEXT = "the next request is held by the routers, and both pools wake for it"


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
    """Return since when and why a deployment is at zero, in a sentence; None if it is not.

    `now_s` is the seconds since 1970.
    """
    for condition in _conditions(status):
        if condition.get("type") == SCALED_TO_ZERO and condition.get("status") == "True":
            since_s = now_s - epoch_s(condition.get("lastTransitionTime"))
            span = "" if math.isnan(since_s) else f" for {_span(max(0.0, since_s))}"
            return f"Both pools are at zero{span}: {condition.get('message')}."
    return None


def _span(seconds: float) -> str:
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def settled(resource: Obj) -> bool:
    """Return whether the present spec is rolled out, so that nothing moves."""
    status = resource.get("status") or {}
    rolled_out = any(c.get("type") == "Progressing" and c.get("reason") == COMPLETE for c in _conditions(status))
    return rolled_out and status.get("observedGeneration") == resource["metadata"].get("generation")


def serves(status: Mapping[str, Any]) -> bool:
    """Return whether a status says that requests are served by workers."""
    return any(
        c.get("type") == "Available" and c.get("status") == "True" and c.get("reason") != SCALED_TO_ZERO
        for c in _conditions(status)
    )


def _conditions(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [c for c in status.get("conditions") or [] if isinstance(c, dict)]
