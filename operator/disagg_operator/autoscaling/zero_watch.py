"""The part of a look that concerns scaling to zero: is a deployment idle, and must it wake?"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.idling import Routers, watched
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.kube.pods import DeploymentPods, identity_of
from disagg_operator.status import zero_state
from disagg_operator.vocabulary import Key, Obj

log = logging.getLogger(__name__)
# How long workers take to come if that was never seen.
_COLD_START_S = 120.0


def cold_start_s(entry: Live) -> float | None:
    """Return how long the workers of the slower pool take to come, or None if it is not known."""
    known = [starts.mean_s for starts in entry.starts.values() if starts.taken_s]
    return max(known, default=None)


def look(
    key: Key,
    entry: Live,
    plan: ScalePlan,
    pods: DeploymentPods,
    states: Sequence[Mapping[str, Any]],
    resource: Obj,
    now_s: float,
    epoch_s: float,
    *,
    resting: bool,
) -> bool:
    """Note whether anybody asks, and return whether the reconcile has something to do.

    `now_s` is a monotonic time, `epoch_s` the time of day.
    """
    routers = Routers([identity_of(pod) for pod in pods.live_routers], states)
    before, entry.idle = entry.idle, watched(entry.idle, routers, now_s, serving=_serving(resource))
    known, entry.awake = entry.awake, None
    if plan.zero is None or plan.suspended:
        return known is not None
    told = entry.idle.too_old != before.too_old
    ahead_s = cold_start_s(entry) or _COLD_START_S
    peaks = (peak for peak in plan.settings.peaks if peak.prefill or peak.decode)
    entry.due = any(peak.is_near(epoch_s, ahead_s) for peak in peaks)
    if resting:
        if (entry.due or routers.holding) and not entry.wake:
            log.info("%s/%s: workers are asked for", *key)
            entry.wake = True
        return entry.wake or told
    idle = entry.idle.at(now_s) >= plan.zero.idle_s
    if idle:
        flips = entry.flip is not None
        entry.awake = zero_state.hindrance(resource, dry_run=plan.dry_run, due=entry.due, flips=flips)
    elif entry.idle.silent_s(now_s) >= plan.zero.idle_s:
        entry.awake = zero_state.silence()
    return told or entry.awake != known or (idle and entry.awake is None)


def _serving(resource: Obj) -> bool:
    conditions = (resource.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Available" and c.get("status") == "True" for c in conditions)
