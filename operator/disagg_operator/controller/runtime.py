"""The running operator without its watches: work queue, resync, autoscaler loop and health server.

At start, everything is listed first. Then the operator waits until it leads; until then, lists and
watches keep its cache up to date, and it neither scrapes nor reconciles. Each term begins with one
run of the autoscaler loop, before the first reconcile, so that the cluster is found unchanged and
nothing is written. When a term ends, nothing of it is kept in memory.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.loop import AutoscalerLoop
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.records.state_store import StateStore
from disagg_operator.autoscaling.role_changer import RoleChanger
from disagg_operator.autoscaling.scale_plan import ScalePlan
from disagg_operator.autoscaling.signals.collector import Collector
from disagg_operator.autoscaling.signals.direct import DirectDoor
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller import children as kids
from disagg_operator.controller import full_list
from disagg_operator.controller.acceptance import scale_plan
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.drain_telling import DrainTeller
from disagg_operator.controller.drainer import ASK_INTERVAL_S, Drainer
from disagg_operator.controller.elector import Alone, Leadership
from disagg_operator.controller.first_lanes import first_lanes
from disagg_operator.controller.health import HealthServer
from disagg_operator.controller.judge import Judge
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.own_objects import OWN_INTERVAL_S, OwnObjects
from disagg_operator.controller.patience import until_it_works
from disagg_operator.controller.pod_events import PodEvents
from disagg_operator.controller.reconciler import Reconciler
from disagg_operator.controller.reference_watch import REFERENCE_INTERVAL_S, ReferenceWatch
from disagg_operator.controller.run_outcomes import RunOutcome, outcome_of
from disagg_operator.controller.runtime_updates import RuntimeUpdates
from disagg_operator.controller.scalers.scaler_part import ScalerPart
from disagg_operator.controller.spec_seal import SpecSeal
from disagg_operator.controller.starting_pods import LOOK_INTERVAL_S, StartingPods
from disagg_operator.controller.terms import after_restores, work_in_terms
from disagg_operator.controller.views import Views
from disagg_operator.controller.wake_watch import WakeWatch
from disagg_operator.controller.work_queue import KeyedQueue, Lane, QueueFull, QueueState
from disagg_operator.desired import Images, NetworkAccess
from disagg_operator.kube.cache import Cache, concerned
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.listings import Listing
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, POD, Resource, uid_of
from disagg_operator.settings import OperatorSettings
from disagg_operator.status.recorder import Recorder
from disagg_operator.vocabulary import Key, Obj

log = logging.getLogger(__name__)

_SWEEP_DEADLINE_S = 30.0


class Runtime:
    """One operator process. `watch_event` is its only entry point from outside."""

    def __init__(
        self,
        settings: OperatorSettings,
        kube: HttpKube,
        *,
        clock: Callable[[], float],
        wall: Callable[[], str],
        new_id: Callable[[], str],
        new_cluster_key: Callable[[], str],
        epoch: Callable[[], float] = time.time,
        leadership: Leadership | None = None,
    ) -> None:
        self._settings = settings
        self._leadership, self._leading = leadership or Alone(), False
        self._kube = kube
        self._clock = clock
        self.cache = Cache()
        self._views = Views(kube, self.cache, clock)
        self.live = LiveTable()
        self.metrics = Metrics()
        self.metrics.watch_deployments(self._told, self.cache)
        self.metrics.watch_writes(lambda: kube.writes)
        self.queue = KeyedQueue(clock, QueueState(max_resync=max(1, settings.workers // 2)))
        # The wall clock is read once at the start; from then on time follows the monotonic clock.
        # Forecasts need the time of day, but no clock that jumps.
        self._epoch_0 = epoch() - clock()
        self._direct = DirectDoor(timeout_s=settings.scrape_timeout_s, concurrency=settings.scrape_concurrency)
        self._prometheus = PrometheusSource(kube, PrometheusDoor(timeout_s=settings.prometheus_timeout_s), clock)
        seal = SpecSeal(kube, settings.lease_namespace, settings.lease_name)
        self._references, self._specs = ReferenceWatch(kube, self._wake, clock), SpecsInConfigMaps(kube, seal)
        self._bearer_of = partial(kids.bearer, kube)
        self._drain_ends = DrainTeller(kube, self.metrics.drain_ended, self.live.note, self._wake)
        self._drainer = Drainer(
            kube, self._direct.post, self._wake, clock, self.metrics.drain_cancelled, self._may_write,
            self.metrics.drain_unanswered,
        )  # fmt: skip
        self._updates = RuntimeUpdates(settings.runtime_updates, self._wake)
        self._reconciler = self._made(wall, new_id, new_cluster_key)
        self._record_dir = Path(settings.record_dir or tempfile.mkdtemp(prefix="disagg-decisions-"))
        self._decision_log = DecisionLog(self._record_dir)
        self._states = StateKeeper(StateStore(kube), self._prometheus, self._epoch)
        self._own = OwnObjects(self.cache, self.live, self._views, self._specs, self._states, self._wake)
        self._role_changer = RoleChanger(self._direct, self._wake, clock, self._may_write)
        self._loop = self._autoscaler()
        self._scalers = ScalerPart(settings, kube, self._decision_log, self.metrics, clock, self._epoch, wall, new_id)
        self._starting = StartingPods(self.cache, self.live, self._direct, self._bearer_of, self._wake, clock)
        self._health = HealthServer(
            settings, kube, clock, self.sick, self.useless, self._metrics_page, self._decision_log.read
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._swept_at = self._synced_at = clock()
        self.listed = asyncio.Event()
        self._unlisted: str | None = None
        self.watches_alive: Callable[[], bool] = lambda: True

    def _made(
        self, wall: Callable[[], str], new_id: Callable[[], str], new_cluster_key: Callable[[], str]
    ) -> Reconciler:
        settings = self._settings
        return Reconciler(
            kube=self._kube,
            live=self.live,
            recorder=Recorder(self._kube, self._clock, wall, new_id),
            judge=Judge(self._specs, self._references, settings.policy),
            metrics=self.metrics,
            drainer=self._drainer,
            images=Images(settings.worker_image, settings.router_image, adapter=settings.adapter_image),
            updates=self._updates,
            wall=wall,
            new_cluster_key=new_cluster_key,
            clock=self._clock,
            access=NetworkAccess.given(settings.scrapers, settings.web_ports),
            views=self._views,
        )

    def _autoscaler(self) -> AutoscalerLoop:
        return AutoscalerLoop(
            cache=self.cache,
            live=self.live,
            collector=Collector(self._direct, self._prometheus, self._epoch),
            states=self._states,
            decision_log=self._decision_log,
            role_changer=self._role_changer,
            plan_of=self._plan_of,
            bearer_of=self._bearer_of,
            wake=self._wake,
            clock=self._clock,
            metrics=self.metrics.scaling,
        )

    def _told(self) -> list[Obj]:
        """Return the resources that this operator tells about: all if it leads."""
        return self.cache.objects(DISAGG_DEPLOYMENT) if self._leading else []

    @property
    def health_port(self) -> int:
        return self._health.port

    async def start(self) -> None:
        """Serve the health endpoint at once, and start the rest in the background."""
        await self._health.start()
        self._tasks.append(asyncio.create_task(self._main(), name="operator"))

    async def stop(self) -> None:
        """Stop taking keys, let running reconciles end within the deadline, and close all parts."""
        self.queue.close()
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_s):
                await self.queue.idle()
        except TimeoutError:
            log.warning("stopping with %d reconciles unfinished", self.queue.state.running())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._role_changer.close()
        await self._keep_state()
        if not self._settings.record_dir:
            shutil.rmtree(self._record_dir, ignore_errors=True)
        await self._health.stop()
        for part in (self._scalers, self._direct, self._prometheus, self._kube):
            await part.close()

    async def _keep_state(self) -> None:
        try:
            async with asyncio.timeout(self._settings.shutdown_timeout_s):
                await self._states.save_all(self.live)
        except TimeoutError:
            log.warning("stopping without the scaling state of every resource")

    def _epoch(self) -> float:
        return self._epoch_0 + self._clock()

    def watch_event(self, resource: Resource, kind: str | None, obj: Obj) -> None:
        """Handle one event of a watch.

        `kind` is None for the objects that exist when a watch starts.
        """
        self.metrics.watch_events.labels(resource.kind).inc()
        keys = self.cache.drop(resource, obj) if kind == "DELETED" else self.cache.put(resource, obj)
        if resource is POD and self._leading:
            self._drain_ends.saw(obj, concerned(POD, obj))
        # Changes by a user take effect at once, even if the key is backing off. Changes of pods
        # come in bursts and are debounced.
        urgent = resource in (DISAGG_DEPLOYMENT, DISAGG_POOL)
        lane = Lane.EVENT if not urgent else Lane.NEW if kind == "ADDED" else Lane.EDIT
        self._wake_all(keys, 0.0 if urgent else self._settings.debounce_s, urgent=urgent, lane=lane)

    def watch_listed(self, listing: Listing) -> None:
        """Handle the list with which a watch begins: it tells of no deletion."""
        self._wake_all(self.cache.drop_unlisted(listing), 0.0)

    def sick(self) -> str | None:
        """Return the problem of this process, as opposed to one of the cluster, or None."""
        now, limit = self._clock(), self._settings.heartbeat_timeout_s
        dead = [task.get_name() for task in self._tasks if task.done()]
        if dead:
            return f"{', '.join(dead)} ended"
        if not self.watches_alive():
            return "the watches ended"
        if self._leading and now - self._swept_at > limit:
            return f"no scrape sweep for {now - self._swept_at:.0f} s"
        if now - self._synced_at > limit + self._settings.resync_interval_s:
            return f"no full list for {now - self._synced_at:.0f} s"
        return None

    def useless(self) -> str | None:
        """Return why this process can do nothing here, whatever could cure it, or None."""
        return self.sick() or self._unlisted or self._leadership.refused()

    async def _main(self) -> None:
        log.info("API server %s", await until_it_works("version", self._kube.version))
        await until_it_works("first list", self.resync)
        self.listed.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(self._settings.resync_interval_s, self.resync))
            group.create_task(after_restores(self._leadership, self.resync))
            group.create_task(self._terms())

    async def _terms(self) -> None:
        await work_in_terms(
            self._leadership, self._term, leads=self._leads, forget=self._forget, close=self._role_changer.close
        )

    def _leads(self, now: bool) -> None:
        self._leading, self._swept_at = now, self._clock()
        self.metrics.leading.set(now)

    def _forget(self) -> None:
        self.live.forget_all_but(frozenset())
        self._references.forget_all()
        self._specs.forget_all()
        self._views.forget_all()
        self._scalers.loop.end_term()
        self._decision_log.begin_anew()

    async def _term(self) -> None:
        """Do the work of the operator that leads; ends only by a bug or when it is cancelled."""
        self._views.believed = False
        self._updates.begin(self.cache.objects(DISAGG_POOL))
        await self._sweep()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.workers):
                group.create_task(self._worker())
            group.create_task(self._every(self._settings.scrape_interval_s, self._sweep))
            group.create_task(self._every(self._settings.scaler_interval_s, self._scalers.loop.tick))
            group.create_task(self._every(LOOK_INTERVAL_S, self._starting.look))
            events = PodEvents(self._kube, self.cache, self.live, self._wake)
            group.create_task(self._every(LOOK_INTERVAL_S, events.look))
            group.create_task(self._every(ASK_INTERVAL_S, self._drainer.look))
            group.create_task(self._drain_ends.run(self.cache.pods_by_deployment()))
            group.create_task(self._every(REFERENCE_INTERVAL_S, self._references.look))
            group.create_task(self._every(OWN_INTERVAL_S, self._own.look))
            watch = WakeWatch(self.cache, self.live, self._bearer_of, lambda k: self._wake_all({k}, 0.0, urgent=True))
            group.create_task(watch.run())
            group.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Begin with all resources once it is known what others wrote until a moment ago.

        Edits do not wait for that, and go first then.
        """
        edited = first_lanes(self.cache.objects(DISAGG_DEPLOYMENT))[Lane.EDIT]
        self._wake_all(edited, 0.0, urgent=True, lane=Lane.EDIT)
        self._views.doubt(await full_list.unread(self._kube, self.cache, self._settings.namespaces))
        self._views.believed = True
        for lane, keys in first_lanes(self.cache.objects(DISAGG_DEPLOYMENT)).items():
            self._wake_all(keys, 0.0, urgent=True, lane=lane)

    async def resync(self) -> None:
        """List all watched kinds, repair the cache, and queue every resource. Raises KubeError."""
        try:
            await full_list.refresh(self._kube, self.cache, self._settings.namespaces, self._wake_changed)
        except full_list.Unlisted as error:
            self._unlisted = f"{error.plural} can't be listed: {error}"
            raise
        self._unlisted = None
        self._synced_at = self._clock()
        self._wake_all(set(self.cache.keys()), 0.0, lane=Lane.RESYNC)

    async def _sweep(self) -> None:
        started = self._clock()
        try:
            async with asyncio.timeout(_SWEEP_DEADLINE_S):
                await self._loop.tick()
        except TimeoutError:
            log.warning("a scrape sweep took more than %.0f s", _SWEEP_DEADLINE_S)
        self._swept_at = self._clock()
        self.metrics.sweep_seconds.observe(self._swept_at - started)

    async def _every(self, interval_s: float, call: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await call()
            except KubeError as error:
                log.warning("%s", error)

    async def _worker(self) -> None:
        while (key := await self.queue.get()) is not None:
            await self._run(key)
        await asyncio.Event().wait()  # closed: the term is cancelled by `stop`

    async def _run(self, key: Key) -> None:
        started, outcome, settings = self._clock(), RunOutcome(), self._settings
        try:
            async with asyncio.timeout(settings.reconcile_timeout_s):
                outcome = RunOutcome(after_s=await self._reconciler.run(key))
        except Exception as error:
            outcome = outcome_of(error, timeout_s=settings.reconcile_timeout_s, resync_s=settings.resync_interval_s)
            level = logging.ERROR if outcome.bug else logging.INFO if outcome.expected else logging.WARNING
            failures, cause = self.queue.state.failures(key) + 1, error if outcome.bug else None
            log.log(level, "%s/%s: %s (failure %d)", *key, outcome.words, failures, exc_info=cause)
        finally:
            if outcome.failed:
                self._views.doubt((key,))
            if outcome.reason and self._may_write():
                await self._tell(key, outcome.reason, outcome.told)
            self.queue.done(key, failed=outcome.failed, away=outcome.away, after_s=outcome.after_s)
        self.metrics.reconciles.labels(outcome.result).inc()
        self.metrics.reconcile_seconds.observe(self._clock() - started)

    async def _tell(self, key: Key, reason: str, message: str) -> None:
        """Write a failure into status, so that nothing is retried in silence."""
        try:
            async with asyncio.timeout(self._settings.kube_timeout_s):
                await self._reconciler.statuses.tell_failure(key, reason, message)
        except (KubeError, TimeoutError) as error:
            log.warning("%s/%s: the failure could not be written into status: %s", *key, error)
        except Exception:
            log.exception("%s/%s: the failure could not be written into status", *key)

    def _plan_of(self, resource: Obj) -> ScalePlan | None:
        """Return the scaling settings of the spec that is served, which may be an earlier one."""
        meta = resource["metadata"]
        entry = self.live.of((meta["namespace"], meta["name"]), uid_of(resource))
        source = meta.get("generation"), bool((resource.get("status") or {}).get("rollout"))
        return entry.plan_from(source, partial(scale_plan, resource))

    def _wake(self, key: Key) -> None:
        self._wake_all({key}, 0.0)

    def _wake_changed(self, keys: set[Key]) -> None:
        self._wake_all(keys, 0.0)

    def _may_write(self) -> bool:
        return self._leadership.write_within_s() > 0

    def _wake_all(self, keys: set[Key], delay_s: float, *, urgent: bool = False, lane: Lane = Lane.EVENT) -> None:
        if not self._leading:
            return  # each term begins with all keys
        for key in sorted(keys):
            try:
                self.queue.add(key, delay_s, urgent=urgent, lane=lane)
            except QueueFull as error:
                log.warning("%s/%s: %s; the next resync brings it back", *key, error)
                return

    def _metrics_page(self, accept: str) -> tuple[bytes, str]:
        self.metrics.queue_depth.set(self.queue.state.depth())
        return self.metrics.page(accept)
