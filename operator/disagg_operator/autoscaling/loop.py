"""The autoscaler: one loop for all deployments, from the metrics of pods to numbers of replicas.

A tick takes every deployment through five stages. Each is called once, and none calls a later one:

    signals      the collector reads the pods, or their Prometheus
    observation  `observe` turns the signals into the input of the policies
    decision     `chosen_policy.step` decides
    record       the decision log and the saved state are written
    replicas     the decision waits in the live table for the reconcile of the key, which is woken

The only thing that the loop itself writes to the cluster is the state of the policies.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling import chosen_policy, zero_watch
from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.autoscaling.policy import role_moves
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.guard import Outcome
from disagg_operator.autoscaling.policy.idling import both_or_neither
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.role_changer import RoleChanger
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.scaling_metrics import ScalingMetrics
from disagg_operator.autoscaling.signals.collector import Collector, Pages, Scrape, Signals, worker_target
from disagg_operator.autoscaling.signals.policy_inputs import observe
from disagg_operator.autoscaling.signals.samples import role_of
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.desired.names import pool_name
from disagg_operator.desired.pool_marks import at_zero, replicas_of
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.pods import DeploymentPods, is_leaving, sort_pods
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, name_of, uid_of
from disagg_operator.rollout import canary_reports
from disagg_operator.status import effectiveness
from disagg_operator.status.kv_links import VIEW_MAX_AGE_S, router_view
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.roles import DECODE, ROLES

log = logging.getLogger(__name__)

_AT_ONCE = 10


@dataclass(frozen=True, slots=True)
class _Job:
    """One deployment in one tick."""

    key: Key
    plan: ScalePlan
    pods: DeploymentPods
    replicas: Mapping[str, int | None]
    entry: Live
    resource: Obj
    resting: bool
    """Whether both pools are scaled to zero."""


class AutoscalerLoop:
    """The loop. Each `tick` takes all deployments through the stages; `clock` is monotonic."""

    def __init__(
        self,
        *,
        cache: Cache,
        live: LiveTable,
        collector: Collector,
        states: StateKeeper,
        decision_log: DecisionLog,
        role_changer: RoleChanger,
        plan_of: Callable[[Obj], ScalePlan | None],
        bearer_of: Callable[[Key], Awaitable[str | None]],
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        metrics: ScalingMetrics,
    ) -> None:
        self._cache = cache
        self._live = live
        self._collector = collector
        self._states = states
        self._log = decision_log
        self._role_changer = role_changer
        self._plan_of = plan_of
        self._bearer_of = bearer_of
        self._wake = wake
        self._clock = clock
        self._metrics = metrics

    async def tick(self) -> None:
        """Take every deployment through the stages.

        Never raises for anything that a pod or a Prometheus does.
        """
        jobs = await self._jobs()
        await asyncio.gather(*(self._ensure_bearer(job) for job in jobs))
        scrapes = [_scrape(job) for job in jobs]
        pages = await self._collector.sweep(scrapes)
        await asyncio.gather(*(self._guarded(*both, pages) for both in zip(jobs, scrapes, strict=True)))

    async def _jobs(self) -> list[_Job]:
        """Return the deployments that have a pool or pods, and forget those that were deleted."""
        keys = self._cache.keys()
        for gone in self._live.forget_all_but(frozenset(keys)):
            self._log.forget(gone)
            self._collector.forget(gone)
            self._metrics.forget(gone)
        pods = self._cache.pods_by_deployment()
        jobs = []
        for number, key in enumerate(keys):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # an edit does not wait for a thousand resources
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            made = {role: self._cache.get(DISAGG_POOL, (key[0], pool_name(key[1], role))) for role in ROLES}
            exists = resource is not None and (key in pods or any(made.values()))
            plan = self._plan_of(resource) if resource is not None and exists else None
            if resource is not None and plan is not None:
                replicas = both_or_neither({role: replicas_of(pool) for role, pool in made.items()})
                entry, resting = self._live.of(key, uid_of(resource)), at_zero(made.values())
                jobs.append(_Job(key, plan, sort_pods(pods.get(key, [])), replicas, entry, resource, resting))
        return jobs

    async def _ensure_bearer(self, job: _Job) -> None:
        if job.entry.bearer is None and job.pods.routers:
            job.entry.bearer = await self._bearer_of(job.key)

    async def _guarded(self, job: _Job, scrape: Scrape, pages: Pages) -> None:
        try:
            await self._stages(job, scrape, pages)
        except Exception:
            # A bug must affect one resource and not the whole operator: this one keeps its
            # replicas.
            log.exception("%s/%s: no decision", *job.key)
            self._metrics.undecided.labels(*job.key).inc()

    async def _stages(self, job: _Job, scrape: Scrape, pages: Pages) -> None:
        """Take one deployment through the stages, from signals to replicas."""
        entry, plan = job.entry, job.plan
        signals = await self._collector.signals_of(scrape, pages)
        changed = self._take_in(job, signals)
        changed |= zero_watch.look(
            job.key, entry, plan, job.pods, signals.states, job.resource, self._clock(), signals.look.now_s,
            resting=job.resting,
        )  # fmt: skip
        outcome: Outcome | None = None
        if await self._may_decide(job):
            seen = observe(signals.look, entry.memory.counters, polled=plan.prometheus is not None)
            outcome, entry.memory = chosen_policy.step(plan, seen, entry.memory, entry.flips_s)
            if outcome is not None:
                self._log.record(job.key, outcome, dry_run=plan.dry_run)
                entry.unsaved |= plan.predictive and not outcome.observation.blind
            await self._states.save_if_due(job.key, entry, signals.look.now_s)
        if self._hand_over(job, signals, outcome) or changed:
            self._wake(job.key)

    def _take_in(self, job: _Job, signals: Signals) -> bool:
        """Store the signals that status shows: pairs, loads, prompts, trouble with Prometheus.

        Returns whether a condition may change.
        """
        entry, seen, now = job.entry, router_view(signals.states), self._clock()
        before = (entry.view, entry.trouble, entry.spared.verdict)
        if seen is not None:
            entry.view, entry.view_at = seen, now
        elif now - entry.view_at > VIEW_MAX_AGE_S or not job.pods.routers:
            entry.view = None
        if seen is None and job.pods.routers:
            entry.bearer = None  # the Secret may have been recreated: read it again next time
        entry.canary = canary_reports.noted(entry.canary, signals.states)
        entry.trouble = signals.trouble
        entry.starts = dict(signals.starts)
        entry.loads = dict(signals.loads)
        spared = effectiveness.without(entry.spared, frozenset(name_of(pod) for pod in job.pods.all_of[DECODE]))
        entry.spared = effectiveness.note(spared, signals.prompts, now)
        return (entry.view, entry.trouble, entry.spared.verdict) != before

    async def _may_decide(self, job: _Job) -> bool:
        """Return whether a policy is to decide, and everything that it needs is known."""
        plan = job.plan
        for pool in [pool for pool in job.entry.decisions if pool not in plan.policies or job.resting]:
            del job.entry.decisions[pool]
        for pool in plan.policies if job.resting else ():
            self._metrics.at_zero(job.key, pool)
        if not plan.policies or plan.suspended or job.resting or None in job.replicas.values():
            return False
        return not plan.predictive or await self._states.ready(job.key, job.entry, plan)

    def _hand_over(self, job: _Job, signals: Signals, outcome: Outcome | None) -> bool:
        """Pass the decisions to the reconcile, and role flips to the role changer.

        Returns whether the reconcile has something to do or to report.
        """
        self._keep_roles(job, signals)
        if outcome is None:
            return False
        changed = False
        for pool, decision in self._with_move(job, outcome).items():
            changed |= self._decided(job, pool, decision)
        return changed

    def _keep_roles(self, job: _Job, signals: Signals) -> None:
        """Ask workers back whose role differs from that of their pool.

        The container of such a worker may have restarted.
        """
        bearer, flip, look = job.entry.bearer, job.entry.flip, signals.look
        if bearer is None:
            return
        roles = {pod: role_of(sample) for pod, sample in {**look.prefill, **look.decode}.items()}
        workers = {role: {name_of(pod): pod for pod in job.pods.workers[role]} for role in ROLES}
        for pod, pool in role_moves.strays(workers, roles, None if flip is None else flip.pod):
            self._role_changer.ask_back(job.key, pod, pool, worker_target(workers[pool][pod], bearer))

    def _with_move(self, job: _Job, outcome: Outcome) -> Mapping[str, Decision]:
        """Begin a role flip if the policy asks for one, and return the decisions that remain."""
        entry, targets, decisions = job.entry, outcome.targets, outcome.decisions
        if targets.flip == 0 and entry.flip is None:
            return decisions
        if entry.flip is None and not job.plan.dry_run and entry.bearer is not None:
            workers = {
                role: {name_of(pod): pod for pod in job.pods.workers[role] if not is_leaving(pod)} for role in ROLES
            }
            flip = role_moves.chosen(targets, decisions, entry.loads, workers, self._clock())
            if flip is not None:
                target = worker_target(workers[flip.giving][flip.pod], entry.bearer)
                self._role_changer.begin(job.key, entry, flip, target)
        if entry.flip is None:
            return decisions
        return role_moves.without(decisions, entry.flip.giving, entry.flip.taking, max(1, abs(targets.flip)))

    def _decided(self, job: _Job, pool: str, decision: Decision) -> bool:
        before = job.entry.decisions.get(pool)
        job.entry.decisions[pool] = decision
        self._metrics.decision(job.key, pool, decision)
        if before is None or before.blind != decision.blind or bool(before.unmet) != bool(decision.unmet):
            return True
        # An unchanged decision has been announced before. It wakes the reconcile again only while
        # it waits to be carried out.
        return decision.to != decision.current and not (job.plan.dry_run and before.to == decision.to)


def _scrape(job: _Job) -> Scrape:
    entry = job.entry
    return Scrape(job.key, job.pods, job.replicas, entry.starts, entry.bearer, job.plan.prometheus)
