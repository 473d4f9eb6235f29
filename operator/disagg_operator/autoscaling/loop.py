"""One loop for all deployments: look at every pod, step every policy, wake the reconcile where
something changed.

It writes nothing to the cluster but the policies' state: a decision lies in the `LiveTable` until
the reconcile of its key carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling.forecasting import Forecasting
from disagg_operator.autoscaling.live import Live, LiveTable, Scaling
from disagg_operator.autoscaling.policy import queue_depth, role_moves
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.autoscaling.queueing import Queueing
from disagg_operator.autoscaling.role_changer import Flipper
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals import pod_facts
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target, parse_json_object
from disagg_operator.autoscaling.signals.fold import Answers, Look, Memory, fold
from disagg_operator.autoscaling.signals.pool_reading import PoolReading, reading, view
from disagg_operator.autoscaling.signals.prometheus_access import METRICS_UNAVAILABLE, Unreadable
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.signals.samples import Sample, parse, role_of
from disagg_operator.controller.metrics import Metrics
from disagg_operator.desired.names import pool_name
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.pods import http_port, is_ready, pool_of
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, labels_of, name_of, uid_of
from disagg_operator.status.observed import VIEW_MAX_AGE_S, router_view
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_COMPONENT, ROUTER
from disagg_wire.ports import ROUTER_PORT, WORKER_PORT
from disagg_wire.protocol import METRICS_PATH, STATE_PATH
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)

# Prometheus scrapes pods one after the other: a step waits until all have been, or for so long.
_ALL_SCRAPED_S = 45.0


@dataclass(frozen=True, slots=True)
class _SortedPods:
    """The pods of one deployment: those that are ready, and all of each pool."""

    routers: tuple[Obj, ...]
    workers: Mapping[str, tuple[Obj, ...]]
    all_of: Mapping[str, tuple[Obj, ...]]


@dataclass(frozen=True, slots=True)
class _Job:
    """One deployment in one sweep."""

    key: Key
    resource: Obj
    plan: ScalePlan
    pods: _SortedPods
    entry: Live


class ScrapeLoop:
    """`tick` is one sweep over everything.

    `clock` is monotonic, `epoch` the seconds since 1970, which never go back.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        live: LiveTable,
        direct: DirectDoor,
        prometheus: PrometheusSource,
        forecasting: Forecasting,
        queueing: Queueing,
        flipper: Flipper,
        plan_of: Callable[[Obj], ScalePlan | None],
        bearer_of: Callable[[Key], Awaitable[str | None]],
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        epoch: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._cache = cache
        self._live = live
        self._direct = direct
        self._prometheus = prometheus
        self._forecasting = forecasting
        self._queueing = queueing
        self._flipper = flipper
        self._plan_of = plan_of
        self._bearer_of = bearer_of
        self._wake = wake
        self._clock = clock
        self._epoch = epoch
        self._metrics = metrics

    async def tick(self) -> None:
        """One sweep. Never raises for what a pod or a Prometheus does."""
        keys = self._cache.keys()
        for gone in self._live.forget_all_but(frozenset(keys)):
            self._forecasting.forget(gone)
            self._prometheus.forget(gone)
            self._metrics.forget(gone)
        pods = self._cache.pods_by_deployment()
        jobs = []
        for key in keys:
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            plan = None if resource is None else self._plan_of(resource)
            if resource is not None and plan is not None:
                jobs.append(_Job(key, resource, plan, _sort(pods.get(key, [])), self._live.of(key, uid_of(resource))))
        await asyncio.gather(*(self._ensure_bearer(job) for job in jobs))
        bodies = await self._direct.fetch([t for job in jobs for t in self._targets(job)])
        found = {(target.pod, target.path): body for target, body in bodies.items()}
        await asyncio.gather(*(self._guarded(job, found) for job in jobs))

    async def _ensure_bearer(self, job: _Job) -> None:
        if job.entry.bearer is None and job.pods.routers:
            job.entry.bearer = await self._bearer_of(job.key)

    def _targets(self, job: _Job) -> list[Target]:
        targets, direct = [], job.plan.prometheus is None
        for pod in job.pods.routers:
            port = http_port(pod, ROUTER_PORT)
            if direct:
                targets.append(Target(_pod_id(pod), _address(pod), port))
            if job.entry.bearer is not None:
                targets.append(Target(_pod_id(pod), _address(pod), port, STATE_PATH, job.entry.bearer))
        if direct:
            workers = (pod for pool in ROLES for pod in job.pods.workers[pool])
            targets.extend(Target(_pod_id(pod), _address(pod), http_port(pod, WORKER_PORT)) for pod in workers)
        return targets

    async def _guarded(self, job: _Job, found: Mapping[tuple[str, str], str]) -> None:
        try:
            await self._one(job, found)
        except Exception:
            # A bug must cost one resource, not the operator: this one keeps the replicas that it
            # has.
            log.exception("%s/%s: no decision", *job.key)
            self._metrics.undecided.labels(*job.key).inc()

    async def _one(self, job: _Job, found: Mapping[tuple[str, str], str]) -> None:
        entry, plan = job.entry, job.plan
        changed, trouble = self._update_view(entry, job.pods, found), entry.trouble
        look = await self._look(job, found)
        changed |= entry.trouble != trouble
        readings = {
            pool: reading(pool, look.prefill if pool == "prefill" else look.decode, look.routers) for pool in ROLES
        }
        entry.loads = {pod: load for r in readings.values() for pod, load in r.by_pod.items()}
        self._keep_roles(job, look)
        for pool in list(entry.pools):
            if pool not in plan.policies:
                del entry.pools[pool]
        if plan.policies and not plan.suspended:
            changed |= await self._predict(job, look) if plan.predictive else self._proportion(job, look, readings)
        if changed:
            self._wake(job.key)

    def _update_view(self, entry: Live, pods: _SortedPods, found: Mapping[tuple[str, str], str]) -> bool:
        """Take the routers' word. True if what status says of the pairs changes."""
        bodies = [found.get((_pod_id(pod), STATE_PATH)) for pod in pods.routers]
        states = [state for body in bodies if body is not None and (state := parse_json_object(body)) is not None]
        seen, now, before = router_view(states), self._clock(), entry.view
        if seen is not None:
            entry.view, entry.view_at = seen, now
        elif now - entry.view_at > VIEW_MAX_AGE_S or not pods.routers:
            entry.view = None
        if seen is None and pods.routers:
            entry.bearer = None  # the Secret may have been made anew: read it again next time
        return entry.view != before

    async def _look(self, job: _Job, found: Mapping[tuple[str, str], str]) -> Look:
        """What the ready pods say, from themselves or from Prometheus."""
        now_s = self._epoch()
        stored = await self._stored(job, now_s)

        def answers(pods: tuple[Obj, ...]) -> dict[str, Sample | None]:
            if stored is not None:
                return {name_of(pod): stored.get(name_of(pod)) for pod in pods}
            bodies = {name_of(pod): found.get((_pod_id(pod), METRICS_PATH)) for pod in pods}
            return {name: None if body is None else parse(body, now_s) for name, body in bodies.items()}

        entry, facts = job.entry, {}
        for pool in ROLES:
            entry.starts[pool] = pod_facts.note_starts(
                entry.starts.get(pool, pod_facts.Starts()), job.pods.workers[pool]
            )
            replicas = self._replicas(job.key, pool)
            facts[pool] = pod_facts.facts(
                job.pods.all_of[pool], 0 if replicas is None else replicas, now_s, entry.starts[pool]
            )
        prefill, decode = (answers(job.pods.workers[pool]) for pool in ROLES)
        return Look(now_s, answers(job.pods.routers), prefill, decode, facts["prefill"], facts["decode"])

    async def _stored(self, job: _Job, now_s: float) -> Mapping[str, Sample] | None:
        """What Prometheus has, nothing when it can't be read; None where it isn't asked."""
        access, found, trouble = job.plan.prometheus, None, None
        if access is not None:
            try:
                found = await self._prometheus.read(job.key, access, now_s)
            except Unreadable as error:
                found, trouble = {}, (error.reason, str(error))
            else:
                if not found:
                    trouble = (
                        METRICS_UNAVAILABLE,
                        "Prometheus has no recent series of these pods with labels namespace and pod",
                    )
        job.entry.trouble = trouble  # only now: a reconcile that runs meanwhile tells what was known
        return found

    def _proportion(self, job: _Job, look: Look, readings: Mapping[str, PoolReading]) -> bool:
        """One step of each pool's own policy. True if a reconcile has something to do or to say."""
        if any(self._replicas(job.key, pool) is None for pool in ROLES):
            return False
        samples = {}
        for pool in job.plan.policies:
            seen = view((name_of(pod) for pod in job.pods.workers[pool]), readings[pool])
            samples[pool] = queue_depth.QueueSample(look.now_s, seen.requests, seen.silent_pods, seen.router_silent)
        if job.plan.prometheus is None or _advanced(look.routers, job.entry, look.now_s):
            folded, job.entry.memory = fold(look, job.entry.memory)
        else:
            folded, _ = fold(look, Memory())  # nothing was scraped since: what was counted is not known
        changed = False
        for pool, decision in self._queueing.step(job.key, job.entry, job.plan, folded.observation, samples).items():
            changed |= self._decided(job, pool, decision)
        return changed

    async def _predict(self, job: _Job, look: Look) -> bool:
        """One step of both pools' policy. True as above."""
        entry = job.entry
        if any(self._replicas(job.key, pool) is None for pool in ROLES) or not await self._forecasting.ready(
            job.key, entry, job.plan
        ):
            return False
        if job.plan.prometheus is not None and not _advanced(look.routers, entry, look.now_s):
            return False
        first = entry.memory.at_s != entry.memory.at_s
        folded, entry.memory = fold(look, entry.memory)
        if first and any(sample is not None for sample in look.routers.values()):
            return False  # counters say something from the second look on
        outcome = await self._forecasting.step(job.key, entry, job.plan, folded)
        if outcome is None:
            return False
        decisions = self._flip(job, outcome.targets, outcome.decisions)
        changed = False
        for pool, decision in decisions.items():
            changed |= self._decided(job, pool, decision)
        return changed

    def _flip(self, job: _Job, targets: Targets, decisions: Mapping[str, Decision]) -> Mapping[str, Decision]:
        """Begin to move a worker between the pools, if that is what the policy asks for.

        Gives what is left to be done otherwise.
        """
        entry = job.entry
        if entry.flip is None and not job.plan.dry_run and entry.bearer is not None:
            asked = role_moves.wanted(targets, decisions)
            pods = {} if asked is None else {name_of(pod): pod for pod in job.pods.workers[asked[0]]}
            pod = role_moves.idlest(entry.loads, pods)
            if asked is not None and pod is not None and len(pods) > 1:
                flip = role_moves.Flip(pod, asked[0], asked[1], self._clock())
                self._flipper.begin(job.key, entry, flip, self._worker(job, pods[pod]))
        if entry.flip is None:
            return decisions
        return role_moves.without(decisions, entry.flip.giving, entry.flip.taking, max(1, abs(targets.flip)))

    def _keep_roles(self, job: _Job, look: Look) -> None:
        """Every worker has the role of the pool that its pod is in, but for the one that is about
        to leave it.
        """
        for pool in ROLES:
            answers = look.prefill if pool == "prefill" else look.decode
            for pod in job.pods.workers[pool]:
                role, moving = (
                    role_of(answers.get(name_of(pod))),
                    job.entry.flip is not None and job.entry.flip.pod == name_of(pod),
                )
                if role in ROLES and role != pool and not moving and job.entry.bearer is not None:
                    self._flipper.ask_back(job.key, name_of(pod), pool, self._worker(job, pod))

    def _worker(self, job: _Job, pod: Obj) -> Target:
        return Target(_pod_id(pod), _address(pod), http_port(pod, WORKER_PORT), bearer=job.entry.bearer)

    def _decided(self, job: _Job, pool: str, decision: Decision) -> bool:
        scaling = job.entry.pools.setdefault(pool, Scaling())
        before, scaling.decision = scaling.decision, decision
        self._metrics.decision(job.key, pool, decision)
        if before is None or before.blind != decision.blind:
            return True
        # An unchanged decision was announced before; it wakes again only while it waits to be
        # carried out.
        return decision.to != decision.current and not (job.plan.dry_run and before.to == decision.to)

    def _replicas(self, key: Key, pool: str) -> int | None:
        found = self._cache.get(DISAGG_POOL, (key[0], pool_name(key[1], pool)))
        value = None if found is None else (found.get("spec") or {}).get("replicas")
        return value if isinstance(value, int) else None


def _advanced(routers: Answers, entry: Live, now_s: float) -> bool:
    """Every router that answers has been scraped since the last step, or that step is long ago."""
    if not now_s - entry.memory.at_s < _ALL_SCRAPED_S:
        return True
    before = entry.memory.samples
    heard = [(pod, sample) for pod, sample in routers.items() if sample is not None]
    return all(pod not in before or sample.at_s > before[pod].at_s for pod, sample in heard)


def _sort(pods: list[Obj]) -> _SortedPods:
    ready = [pod for pod in pods if is_ready(pod) and _address(pod)]
    workers = {pool: tuple(pod for pod in ready if pool_of(pod) == pool) for pool in ROLES}
    routers = tuple(pod for pod in ready if labels_of(pod).get(LABEL_COMPONENT) == ROUTER)
    return _SortedPods(routers, workers, {pool: tuple(pod for pod in pods if pool_of(pod) == pool) for pool in ROLES})


def _address(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")


def _pod_id(pod: Obj) -> str:
    return uid_of(pod) or name_of(pod)
