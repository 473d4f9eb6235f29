"""One loop for all deployments: look at every pod, step every policy, wake the reconcile where something changed.

It writes nothing to the cluster: a decision lies in the `LiveTable` until the reconcile of its key carries it out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from disagg_operator.autoscaling import policy
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target, parse_json_object
from disagg_operator.autoscaling.signals.prometheus import PrometheusDoor
from disagg_operator.autoscaling.signals.reading import PoolReading, router_waiting, view, worker_requests
from disagg_operator.cache import Cache
from disagg_operator.desired.facts import ROLES as POOLS
from disagg_operator.desired.names import ROUTER_PORT, WORKER_PORT, pool_name
from disagg_operator.live import Live, LiveTable, ScalePlan, Scaling
from disagg_operator.metrics import Metrics
from disagg_operator.observe import VIEW_MAX_AGE_S, http_port, is_ready, pool_of, router_view
from disagg_operator.queue import Key
from disagg_operator.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, Obj, labels_of, name_of, uid_of

log = logging.getLogger(__name__)

STATE_PATH = "/internal/v1/state"


@dataclass(frozen=True, slots=True)
class _Pods:
    """The ready pods of one deployment."""

    routers: tuple[Obj, ...]
    workers: Mapping[str, tuple[Obj, ...]]


class ScrapeLoop:
    """`tick` is one sweep over everything."""

    def __init__(
        self,
        *,
        cache: Cache,
        live: LiveTable,
        direct: DirectDoor,
        prometheus: PrometheusDoor,
        plan_of: Callable[[Obj], ScalePlan | None],
        bearer_of: Callable[[Key], Awaitable[str | None]],
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        self._cache = cache
        self._live = live
        self._direct = direct
        self._prometheus = prometheus
        self._plan_of = plan_of
        self._bearer_of = bearer_of
        self._wake = wake
        self._clock = clock
        self._metrics = metrics

    async def tick(self) -> None:
        """One sweep. Never raises for what a pod or a Prometheus does."""
        keys = self._cache.keys()
        self._live.forget_all_but(frozenset(keys))
        pods = self._cache.pods_by_deployment()
        jobs: dict[Key, tuple[Obj, ScalePlan, _Pods]] = {}
        for key in keys:
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            plan = None if resource is None else self._plan_of(resource)
            if resource is not None and plan is not None:
                jobs[key] = (resource, plan, _sort(pods.get(key, [])))
        await asyncio.gather(*(self._ensure_bearer(key, uid_of(job[0]), job[2]) for key, job in jobs.items()))
        targets = [t for key, job in jobs.items() for t in self._targets(key, job)]
        bodies = await self._direct.fetch(targets)
        found = {(target.pod, target.path): body for target, body in bodies.items()}
        await asyncio.gather(*(self._one(key, job, found) for key, job in jobs.items()))

    async def _ensure_bearer(self, key: Key, uid: str, pods: _Pods) -> None:
        entry = self._live.of(key, uid)
        if entry.bearer is None and pods.routers:
            entry.bearer = await self._bearer_of(key)

    def _targets(self, key: Key, job: tuple[Obj, ScalePlan, _Pods]) -> list[Target]:
        resource, plan, pods = job
        entry = self._live.of(key, uid_of(resource))
        targets = []
        for pod in pods.routers:
            port = http_port(pod, ROUTER_PORT)
            targets.append(Target(_pod_id(pod), _address(pod), port))
            if entry.bearer is not None:
                targets.append(Target(_pod_id(pod), _address(pod), port, STATE_PATH, entry.bearer))
        if plan.prometheus_url is None:
            workers = (pod for pool in POOLS for pod in pods.workers[pool])
            targets.extend(Target(_pod_id(pod), _address(pod), http_port(pod, WORKER_PORT)) for pod in workers)
        return targets

    async def _one(self, key: Key, job: tuple[Obj, ScalePlan, _Pods], found: Mapping[tuple[str, str], str]) -> None:
        resource, plan, pods = job
        entry = self._live.of(key, uid_of(resource))
        changed = self._update_view(entry, pods, found)
        readings = await self._readings(key, plan, pods, found)
        entry.loads = {pod: load for r in readings.values() if r is not None for pod, load in r.by_pod.items()}
        for pool in list(entry.pools):
            if pool not in plan.policies:
                del entry.pools[pool]
        for pool in plan.policies:
            if not plan.suspended:
                changed |= self._step(key, entry, pool, plan, pods, readings.get(pool))
        if changed:
            self._wake(key)

    def _update_view(self, entry: Live, pods: _Pods, found: Mapping[tuple[str, str], str]) -> bool:
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

    async def _readings(
        self, key: Key, plan: ScalePlan, pods: _Pods, found: Mapping[tuple[str, str], str]
    ) -> dict[str, PoolReading | None]:
        if plan.prometheus_url is not None:
            url, pools = plan.prometheus_url, list(plan.policies)
            answers = await asyncio.gather(*(self._prometheus.read(url, *key, pool) for pool in pools))
            return dict(zip(pools, answers, strict=True))
        waiting = [router_waiting(found.get((_pod_id(pod), "/metrics"), "")) for pod in pods.routers]
        complete = bool(waiting) and all(w is not None for w in waiting)
        out: dict[str, PoolReading | None] = {}
        for pool in POOLS:
            by_pod = {}
            for pod in pods.workers[pool]:
                requests = worker_requests(found.get((_pod_id(pod), "/metrics"), ""))
                if requests is not None:
                    by_pod[name_of(pod)] = requests
            out[pool] = PoolReading(by_pod, sum(w[pool] for w in waiting if w is not None) if complete else None)
        return out

    def _step(self, key: Key, entry: Live, pool: str, plan: ScalePlan, pods: _Pods, reading: PoolReading | None) -> bool:
        """One step of a pool's policy. True if a reconcile has something to do or to say."""
        current = self._replicas(key, pool)
        if current is None:
            return False
        scaling = entry.pools.setdefault(pool, Scaling())
        seen = view((name_of(pod) for pod in pods.workers[pool]), reading)
        sample = policy.Sample(self._clock(), seen.requests, seen.silent_pods, seen.router_silent)
        before = scaling.decision
        scaling.decision, scaling.state = policy.step(plan.policies[pool], sample, current, scaling.state)
        self._metrics.decision(key, pool, scaling.decision)
        if before is None or before.blind != scaling.decision.blind:
            return True
        # An unchanged decision was announced before; it wakes again only while it waits to be carried out.
        return scaling.decision.to != current and not (plan.dry_run and before.to == scaling.decision.to)

    def _replicas(self, key: Key, pool: str) -> int | None:
        found = self._cache.get(DISAGG_POOL, (key[0], pool_name(key[1], pool)))
        value = None if found is None else (found.get("spec") or {}).get("replicas")
        return value if isinstance(value, int) else None


def _sort(pods: list[Obj]) -> _Pods:
    ready = [pod for pod in pods if is_ready(pod) and _address(pod)]
    workers = {pool: tuple(pod for pod in ready if pool_of(pod) == pool) for pool in POOLS}
    routers = tuple(pod for pod in ready if labels_of(pod).get("app.kubernetes.io/component") == "router")
    return _Pods(routers, workers)


def _address(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")


def _pod_id(pod: Obj) -> str:
    return uid_of(pod) or name_of(pod)
