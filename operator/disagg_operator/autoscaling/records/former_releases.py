"""PURE: What release 0.1.0 has saved of the predictive policy, in the form of this release.

That release remembered the errors of its forecasts in two histograms, from e^-1.2 to e^1.2. The
first one fades about as quickly as the single one of today. Its profiles weighed each interval by
a constant. What it knew of a full cluster, and its slow memory of misses, have no counterpart.
"""

from __future__ import annotations

from typing import Any

from disagg_operator.autoscaling.policy.forecast import ERROR_BINS
from disagg_wire.roles import ROLES

_SLOW_MEMORY = "pressure"
_GONE = ("cap", "cap_until_s", _SLOW_MEMORY)
_NO_TARGETS = ("prefill_ahead", "decode_ahead")  # which nobody has read
_WEIGHT = 400.0  # of an interval's row in a learned profile


def state(raw: Any) -> Any:
    """Return a plain state; one of this release stays as it is."""
    if not isinstance(raw, dict):
        return raw
    pools = {role: raw[role] for role in ROLES if isinstance(raw.get(role), dict)}
    learned = raw.get("learned")
    if isinstance(learned, dict) and any(_SLOW_MEMORY in pool for pool in pools.values()):
        raw = raw | {"learned": {role: _evidence(found) for role, found in learned.items()}}
    return raw | {role: _pool(pool) for role, pool in pools.items()}


def _evidence(raw: Any) -> Any:
    """Return what a profile was learned from, each interval with the weight 1."""
    if not isinstance(raw, dict):
        return raw
    return raw | {name: _divided(raw[name]) for name in ("squares", "products") if name in raw}


def _divided(raw: Any) -> Any:
    known = isinstance(raw, list) and all(isinstance(n, int | float) for n in raw)
    return [n / _WEIGHT for n in raw] if known else raw


def _pool(raw: dict[str, Any]) -> dict[str, Any]:
    pool = {name: value for name, value in raw.items() if name not in _GONE}
    demand = pool.get("demand")
    if isinstance(demand, dict) and "errors" in demand:
        pool["demand"] = demand | {"errors": _errors(demand["errors"])}
    return pool


def settings(raw: Any) -> Any:
    """Return plain settings; those of this release stay as they are."""
    if not isinstance(raw, dict) or not isinstance(raw.get("tuning"), dict):
        return raw
    tuning = raw["tuning"]
    if isinstance(tuning.get("error_memory_s"), list):
        tuning = {name: value for name, value in tuning.items() if name != "error_memory_s"}
    return raw | {"tuning": tuning}


def targets(raw: Any) -> Any:
    """Return plain targets; those of this release stay as they are."""
    return {name: value for name, value in raw.items() if name not in _NO_TARGETS} if isinstance(raw, dict) else raw


def _errors(raw: Any) -> Any:
    """Return one histogram. Errors that are larger than its bins count as the largest."""
    if not isinstance(raw, list) or not raw or not isinstance(raw[0], list):
        return raw
    counts = raw[0]
    beyond = (len(counts) - ERROR_BINS) // 2
    if beyond < 0 or not all(isinstance(n, int | float) for n in counts):
        return raw
    kept = counts[beyond : beyond + ERROR_BINS]
    kept[0] += sum(counts[:beyond])
    kept[-1] += sum(counts[beyond + ERROR_BINS :])
    return kept
