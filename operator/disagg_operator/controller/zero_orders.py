"""Scaling to zero in one run of the reconciler: what is ordered, and what is counted of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from disagg_operator.api.violation import Violation
from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.idling import IdleWatch
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.scaling_metrics import ScalingMetrics
from disagg_operator.controller import decision_report, replicas
from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.replicas import OWNER_ZERO, Replicas, ZeroOrder
from disagg_operator.desired.pool_marks import ZERO, mark_of, replicas_of
from disagg_operator.status import zero_state
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)
ROUTERS_TOO_OLD = "RoutersTooOld"


def order_of(scaling: ScalePlan, live: Live, resource: Obj, now_s: float) -> ZeroOrder:
    """Return what scaling to zero asks of the pools of a resource at monotonic `now_s`."""
    if scaling.zero is None:
        return ZeroOrder()
    idle = live.idle.at(now_s) >= scaling.zero.idle_s
    free = not (scaling.dry_run or live.due or live.wake or live.flip is not None)
    return ZeroOrder(
        allowed=True,
        sleep=idle and free and zero_state.settled(resource),
        wake=live.wake or live.due,
        sizes=scaling.zero.sizes,
    )


class ZeroOrders:
    """Decides the replicas of both pools of a run, and notes when they go to zero and come back.

    `clock` is monotonic.
    """

    def __init__(self, metrics: ScalingMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock

    def decide(self, run: Pass) -> dict[str, Replicas]:
        """Return the replicas of both pools, by role."""
        pools = {role: run.pool(role) for role in ROLES}
        plan, live = run.plan, run.live
        wanted = {role: _wanted(run, role, replicas_of(pools[role])) for role in ROLES}
        order = order_of(plan.scaling, live, run.resource, self._clock())
        return replicas.decide_both(plan.declared, pools, wanted, order, suspended=plan.scaling.suspended)

    def marked(self, run: Pass) -> list[bool]:
        """Return which of the pools are at zero before anything is written."""
        return [mark_of(run.pool(role)).why == ZERO for role in ROLES]

    def written(self, run: Pass, marked: list[bool]) -> None:
        """Note what a run has written; `marked` is what the method of that name returned."""
        live, rests = run.live, resting(run.pools)
        if rests and not all(marked):
            self._metrics.zeros.labels(*run.key).inc()
            log.info("%s/%s: both pools go to zero", *run.key)
        if any(marked) and not rests and not run.plan.scaling.suspended:
            self._metrics.wakes.labels(*run.key).inc()
            # Whoever woke them need not have asked a router.
            live.woken_s, live.idle = self._clock(), IdleWatch()
            log.info("%s/%s: both pools wake", *run.key)
        if not rests:
            live.wake = False

    def warnings(self, run: Pass) -> Iterator[Violation]:
        """Yield why a deployment that may go to zero never does."""
        if run.plan.scaling.zero is not None and run.live.idle.too_old:
            words = "the routers are of a release that does not tell whether anybody asks: update their image"
            yield Violation("spec.scaling.scaleToZero", words, ROUTERS_TOO_OLD)

    def words(self, run: Pass, stored: Obj) -> tuple[str, str] | None:
        """Return why both pools are at zero, as a reason and a message; None if they are not."""
        limit = run.plan.scaling.zero
        if limit is None or not resting(run.pools):
            return None
        return zero_state.reason_of(run.live.idle.at(self._clock()), limit.idle_s, stored)

    def awake(self, run: Pass) -> tuple[str, str] | None:
        """Return why both pools stay although nobody asks; None if there is nothing to say."""
        limit = run.plan.scaling.zero
        return None if limit is None or resting(run.pools) or run.plan.scaling.suspended else run.live.awake

    def told(self, key: Key, live: Live, status: Mapping[str, object]) -> None:
        """Note from a status how long the pools took to serve."""
        if live.woken_s is not None and zero_state.serves(status):
            self._metrics.wake_seconds.observe(self._clock() - live.woken_s)
            log.info("%s/%s: serving %.0f s after both pools woke", *key, self._clock() - live.woken_s)
            live.woken_s = None


def resting(pools: Mapping[str, Replicas]) -> bool:
    """Return whether the decision is that both pools are at zero."""
    return all(pools[role].owner == OWNER_ZERO for role in ROLES)


def _wanted(run: Pass, role: str, current: int | None) -> int | None:
    """Return the replicas that the autoscaler wants and that are still to be written, or None."""
    flip = run.live.flip
    if flip is not None and flip.changed and current is not None and role in (flip.giving, flip.taking):
        if role not in flip.sizes:
            run.view.certain()
        # Only once: a repeated run finds that one of the numbers has already changed.
        flip.sizes.setdefault(role, current + (1 if role == flip.taking else -1))
        return flip.sizes[role]
    return decision_report.to_carry_out(run.live.decisions.get(role), current, run.plan.scaling.dry_run)
