"""PURE: The autoscaler's decisions, as shown by status, Events and pod deletion costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from disagg_operator.autoscaling.policy.decision import METRICS_UNAVAILABLE, Decision
from disagg_operator.kube.pods import epoch_s
from disagg_operator.kube.resources import annotations_of, name_of
from disagg_operator.status.events import NORMAL, Note
from disagg_operator.vocabulary import Obj

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_MAX_COST = 1_000_000
_MAX_WORDS = 512
_MAX_NUMBERS = 24
_STANDING_S = 30.0


def to_carry_out(decision: Decision | None, live_replicas: int | None, dry_run: bool) -> int | None:
    """Return the number of replicas to write, or None.

    A decision made for another number of replicas is out of date: the next tick decides again.
    """
    if decision is None or dry_run or decision.current != live_replicas or decision.to == decision.current:
        return None
    return decision.to


def in_status(pool: Mapping[str, Any], decision: Decision | None, dry_run: bool, now: str) -> Obj:
    """Return what the status of a pool says of its scaling; `pool` is its status so far."""
    told = {
        "lastDecision": last_decision(pool.get("lastDecision"), decision, dry_run, now),
        "scaling": standing(pool.get("scaling"), decision, now),
    }
    return {name: value for name, value in told.items() if value}


def standing(stored: Mapping[str, Any] | None, decision: Decision | None, now: str) -> Obj | None:
    """Return `scaling` of a pool's status: what the pool needs, and why it has not that.

    It is written with each other number of workers, and otherwise twice in a minute at most:
    otherwise the status would be written with every sample.
    """
    kept = None if stored is None else dict(stored)
    if decision is None:
        return kept
    entry: Obj = {"time": now, "wanted": decision.to, "reason": decision.reason}
    if (needed := decision.numbers.get("best")) is not None:
        entry["needed"] = int(needed)
    if decision.limit:
        entry["limitedBy"] = decision.limit
    if decision.message:
        entry["message"] = decision.message[:_MAX_WORDS]
    if kept is None or kept.get("wanted") != decision.to:
        return entry
    if epoch_s(now) - epoch_s(kept.get("time")) < _STANDING_S:
        return kept
    return entry if any(kept.get(name) != entry.get(name) for name in ("needed", "reason", "limitedBy")) else kept


def last_decision(stored: Mapping[str, Any] | None, decision: Decision | None, dry_run: bool, now: str) -> Obj | None:
    """Return `lastDecision` of a pool's status.

    This is the last decision that changed the replicas, or the one with which metrics became
    unavailable or available again. A decision that changes nothing is not written, because the
    status would otherwise be written with every sample.
    """
    kept = None if stored is None else dict(stored)
    if decision is None:
        return kept
    moves = decision.to != decision.current
    was_blind = kept is not None and kept.get("reason") == METRICS_UNAVAILABLE
    if not moves and decision.blind == was_blind:
        return kept
    entry: Obj = {
        "time": now,
        "signal": decision.signal,
        "from": decision.current,
        "to": decision.to,
        "reason": decision.reason,
        "dryRun": dry_run,
    }
    if decision.target:
        entry["target"] = decision.target
    if decision.value is not None and math.isfinite(decision.value):
        entry["value"] = round(decision.value, 3)
    if decision.message:
        entry["message"] = decision.message[:_MAX_WORDS]
    # JSON has no NaN: what is not known is left out.
    if numbers := {name: value for name, value in sorted(decision.numbers.items()) if math.isfinite(value)}:
        entry["numbers"] = dict(list(numbers.items())[:_MAX_NUMBERS])
    same = kept is not None and all(kept.get(k) == entry[k] for k in ("from", "to", "reason", "dryRun"))
    return kept if same and dry_run else entry


def shown(value: float | None) -> str:
    """Return a number for people, with at most three decimal places."""
    return "unknown" if value is None or math.isnan(value) else f"{value:.3f}".rstrip("0").rstrip(".")


def scaled_note(pool: str, decision: Decision) -> Note:
    """Return the Event for a decision that was carried out."""
    reason = "ScaledUp" if decision.to > decision.current else "ScaledDown"
    why = decision.message or f"{decision.signal}={shown(decision.value)} target {shown(decision.target)}"
    return Note(NORMAL, reason, f"{pool}: {why}: {decision.current} -> {decision.to} ({decision.reason})")


def deletion_costs(pods: Iterable[Obj], loads: Mapping[str, float]) -> dict[str, str]:
    """Return, by pod, the deletion costs to write before a pool shrinks.

    The fewer requests a pod holds, the sooner it is deleted. A pod whose load is unknown costs as
    much as the busiest one, so that no requests are lost because a scrape failed.
    """
    pods = list(pods)
    highest = max(loads.values(), default=0.0)
    out = {}
    for pod in pods:
        cost = str(min(int(loads.get(name_of(pod), highest)), _MAX_COST))
        if annotations_of(pod).get(DELETION_COST) != cost:
            out[name_of(pod)] = cost
    return out
