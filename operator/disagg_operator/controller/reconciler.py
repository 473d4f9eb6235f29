"""The reconciler: one run reads everything about one resource, decides, and writes what differs.

The decisions are made in PURE modules. Reconciling is level-based: nothing here remembers an event
or a step, so a run that is interrupted between any two writes is simply repeated. Deletion is left
to the garbage collector: every child carries an ownerReference, and there is no finalizer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.controller import children as kids
from disagg_operator.controller import (
    decision_report,
    drift,
    pod_moves,
    policy_rules,
    policy_writes,
    restraint,
    rollout_step,
    rollout_writes,
    run_intent,
    runtime_updates,
)
from disagg_operator.controller.acceptance import Refused
from disagg_operator.controller.children import ChildKey, NameTaken
from disagg_operator.controller.drainer import Drainer
from disagg_operator.controller.judge import Judge, Judgement
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.rehearsal import NO_UID, blaming, in_one, refusal_of, rehearse
from disagg_operator.controller.rollout_step import Inputs, RolloutStep
from disagg_operator.controller.runtime_updates import RuntimeUpdates
from disagg_operator.controller.status_inputs import NETWORK_RETRY_S, Looker
from disagg_operator.controller.status_writer import StatusWriter
from disagg_operator.controller.views import View, Views
from disagg_operator.controller.zero_orders import ZeroOrders
from disagg_operator.desired import Facts, Images, NetworkAccess, pins, render
from disagg_operator.desired.names import key_secret_name, selector_text
from disagg_operator.kube.client import Kube
from disagg_operator.kube.doors import Stale
from disagg_operator.kube.errors import Denied, Invalid
from disagg_operator.kube.lost_fields import lost_fields
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_POOL,
    NETWORK_ATTACHMENT,
    SECRET,
    labels_of,
    name_of,
    uid_of,
)
from disagg_operator.rollout.steady_times import progress_status
from disagg_operator.status import changes, conditions
from disagg_operator.status.recorder import Recorder
from disagg_operator.status.workloads import Observed
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)

_AT_ONCE_S = 0.1


class Reconciler:
    """Reconciles DisaggDeployments.

    `run` may be called for several keys at the same time, but never twice at once for the same key.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        live: LiveTable,
        recorder: Recorder,
        judge: Judge,
        metrics: Metrics,
        drainer: Drainer,
        images: Images,
        updates: RuntimeUpdates,
        wall: Callable[[], str],
        new_cluster_key: Callable[[], str],
        clock: Callable[[], float],
        access: NetworkAccess = NetworkAccess(),  # noqa: B008 (it cannot change)
        views: Views | None = None,
    ) -> None:
        self._kube = kube
        self._views = views or Views(kube)
        self.statuses = StatusWriter(self._views.door, recorder, wall)
        self._live = live
        self._recorder = recorder
        self._judge = judge
        self._metrics = metrics
        self._drainer = drainer
        self._images = images
        self._updates = updates
        self._access = access
        self._wall = wall
        self._new_cluster_key = new_cluster_key
        self._clock = clock
        self._looker = Looker(kube)
        self._zero = ZeroOrders(metrics.scaling, clock)

    async def run(self, key: Key) -> float | None:
        """Bring one resource to its desired state.

        Returns the number of seconds after which to reconcile again, or None. Raises KubeError.
        """
        if (view := await self._views.remembered(key)) is not None:
            try:
                return await self._once(key, view)
            except Stale:
                if view.first:  # that nothing has been accepted yet was a guess
                    for part in (self._judge, self._views):
                        part.forget(key)
        return await self._once(key, await self._views.fresh(key))

    async def _once(self, key: Key, view: View) -> float | None:
        """Bring a resource to its desired state. Raises KubeError, and Stale if `view` is old."""
        resource = view.resource
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            for part in (self._judge, self._drainer, self._views):
                part.forget(key)
            self._updates.note(key, None)
            return None
        if lost := lost_fields(resource):
            # Only an Event says so: a write to the resource would remove the fields from the store.
            await self._recorder.send(resource, [restraint.fields_dropped(lost)])
            return None
        live = self._live.of(key, uid_of(resource))
        try:
            run = await self._begin(key, view, live, await self._judge.judge(resource, view.children))
            run = await self._accepted(run)
            await self._write(run)
        except (Refused, NameTaken, Invalid, Denied) as error:
            if view.first:
                raise Stale(str(error)) from error  # the next run knows what exists
            refused = refusal_of(error)
            live.plan = None
            await self.statuses.refuse(resource, refused.reason, str(refused))
            return refused.retry_s
        live.plan = run.plan.scaling
        await self._report(run)
        self._updates.note(key, run.runtime)
        waits = [*run.waits_s, run.judgement.retry_s, run.runtime.retry_s, await self._after(run)]
        return min((s for s in waits if s is not None), default=None)

    async def _after(self, run: Pass) -> float | None:
        """Write down what the rollout has shown, and return when to look again, or None."""
        if run.step is None:
            return None
        generation = int(run.served["metadata"].get("generation", 0))
        again = await rollout_writes.mark(run.kube, run.key, run.step, run.children, generation)
        return _AT_ONCE_S if again else run.step.plan.wake_s

    async def _begin(self, key: Key, view: View, live: Live, judgement: Judgement) -> Pass:
        resource = view.resource or {}
        runtime = runtime_updates.choose(
            resource, judgement.plan.resource, view.children.objects, self._images, lambda: self._updates.may_begin(key)
        )
        served = await self._judge.served(resource, judgement, first=view.first)
        return Pass(key, resource, served, live, view, judgement, runtime)

    async def _accepted(self, run: Pass) -> Pass:
        """Let the API server judge what is about to be written, and return the run that may go on.

        If it refuses the spec as it is written, that is the one that was accepted last. Of this
        one, everything is written that is not refused. Raises Refused.
        """
        refused = await self._rehearse_with_pins(run) or await self._judge.accepted(
            run.resource, run.judgement, run.kube
        )
        if refused and run.judgement.refusal is None:
            judgement = await self._judge.fall_back(run.resource, run.children, in_one(refused.values()))
            run = await self._begin(run.key, run.view, run.live, judgement)
            refused = await self._rehearse_with_pins(run)
        run.blocked = frozenset(refused)
        return run

    async def _rehearse_with_pins(self, run: Pass) -> dict[ChildKey, Refused]:
        refused = await self._rehearse(run)
        if not refused:
            return {}
        words = in_one(refused.values())
        if (unmoved := run.runtime.unmoved(str(words), words.retry_s)) is None:
            return refused
        run.runtime = unmoved
        return await self._rehearse(run)

    async def _rehearse(self, run: Pass) -> dict[ChildKey, Refused]:
        run.pools |= self._zero.decide(run)
        facts = await self._facts(run)
        uids = {role: NO_UID if (pool := run.pool(role)) is None else uid_of(pool) for role in ROLES}
        every = self._render(run, replace(facts, pool_uids=uids))
        rendered = self._rolled(run, every)
        if pod_moves.is_late(run.live.flip, run.children.objects.values(), run.step):
            run.live.flip = None  # the worker is asked back into its role
            return await self._rehearse(run)
        owners = kids.owners_of(run.resource, run.children)
        # A router that follows the workers is judged with them.
        waiting = [obj for obj in every if labels_of(obj).get(LABEL_COMPONENT) == ROUTER and obj not in rendered]
        waiting += [] if run.step is None or run.step.record is None else [run.step.record]
        return await rehearse(run.kube, run.judgement.spec, [*rendered, *waiting], run.children, owners)

    async def _facts(self, run: Pass) -> Facts:
        has_networks = run.plan.attachment is not None and await self._kube.has_api(NETWORK_ATTACHMENT)
        cluster_key = None
        if run.children.get(SECRET.kind, key_secret_name(run.key[1])) is None:
            cluster_key = self._new_cluster_key()
        return Facts(
            uid=uid_of(run.resource),
            replicas={role: run.pools[role].count for role in ROLES},
            declared={role: text for role in ROLES if (text := run.pools[role].declared) is not None},
            images=run.runtime.pins.images,
            runtime=pins.to_text(run.runtime.pins),
            cluster_key=cluster_key,
            attachments_available=has_networks,
            access=self._access,
        )

    def _render(self, run: Pass, facts: Facts) -> list[Obj]:
        live, every = list(run.children.objects.values()), render(run.plan.resource, facts)
        return policy_rules.widened(every, run.served, live, run.children.pods, facts)

    def _rolled(self, run: Pass, rendered: list[Obj]) -> list[Obj]:
        """Let the planner decide on the Deployments of workers, and return all objects."""
        run.step = rollout_step.decide(
            Inputs(
                dd=run.plan.resource,
                resource=run.served,
                rendered=rendered,
                objects=list(run.children.objects.values()),
                pods=run.children.pods,
                sizes={role: run.pools[role].size for role in ROLES},
                view=run.live.view,
                now=self._wall(),
                reports=run.live.canary,
                steady=run.live.steady,
                clock_s=self._clock(),
                loading=run.live.loading,
            )
        )
        if run.step is None:  # a pool is still to be made; its Deployments need its uid
            return [obj for obj in rendered if obj["kind"] != DEPLOYMENT.kind or not labels_of(obj).get(LABEL_POOL)]
        return run.step.objects

    async def _write(self, run: Pass) -> None:
        """Apply the rendered objects and prune the others.

        A pool's children are rendered with the pool's uid, so a new pool takes a second round.
        """
        facts, marked = await self._facts(run), self._zero.marked(run)
        for _ in range(2):
            uids = {role: uid_of(pool) for role in ROLES if (pool := run.pool(role)) is not None}
            rendered = self._rolled(run, self._render(run, replace(facts, pool_uids=uids)))
            if run.step is not None:
                await rollout_writes.record(run.kube, run.key, run.step, run.children, run.blocked)
            await self._move_pod(run, rendered)
            await self._drainer.prepare(run, self._wall())
            for obj in rendered:
                await self._apply(run, obj)
            if len(uids) == len(ROLES):
                break
        await policy_writes.keep_for_pods(run.kube, run, self._clock())
        self._zero.written(run, marked)
        kept = frozenset[ChildKey]() if run.step is None else run.step.kept
        await kids.adopt_what_stays(run.kube, run.plan.resource, uid_of(run.resource), run.children, kept)
        if run.step is None:
            return
        workers = {(DEPLOYMENT.kind, name_of(obj)) for obj in rendered if labels_of(obj).get(LABEL_POOL)}
        if not workers & run.blocked:
            await self._resize(run, run.step)
        for gone in await kids.prune(run.kube, run.resource, rendered, run.children, run.step.kept):
            log.info("%s/%s: deleted %s %s", *run.key, gone["kind"], name_of(gone))

    async def _resize(self, run: Pass, step: RolloutStep) -> None:
        """Change the sizes of the Deployments of other revisions than the declared one."""
        if step.exchanges:
            run.view.certain()
            self._metrics.exchanges.labels(*run.key).inc()
        for deployment, wanted in step.sizes:
            count = run.size_of(deployment, wanted)
            if count != deployment["spec"]["replicas"]:
                await rollout_writes.resize(run.kube, run.key, deployment, count, run.children)

    async def _apply(self, run: Pass, obj: Obj) -> None:
        if kids.key_of(obj) in run.blocked:
            return
        live, obj = run.children.get(str(obj["kind"]), name_of(obj)), run.sized(obj)
        wait_s, notes = restraint.pause(run.live.contests, obj, live, self._clock())
        run.notes += notes
        if wait_s > 0:
            run.waits_s.append(wait_s)
            return
        if obj["kind"] == DISAGG_POOL.kind and live is not None:
            # If another client writes /scale between the read and this write, the apply conflicts
            # and the run starts over.
            obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
        with blaming(run.judgement.spec, obj):
            wrote = await kids.apply(run.kube, obj, run.children, kids.owners_of(run.resource, run.children))
        if wrote:
            log.info("%s/%s: applied %s %s", *run.key, obj["kind"], name_of(obj))
            run.live.contests.wrote(kids.key_of(obj), drift.rendered_hash(obj), self._clock())
            self._note_scaling(run, obj)

    async def _move_pod(self, run: Pass, rendered: list[Obj]) -> None:
        """Move the pod of a worker that has changed its role to its new pool.

        The new pool grows first, then the pod's labels change. The pool that the pod leaves shrinks
        with the rest of the objects.
        """
        flip = run.live.flip
        if flip is None or not flip.changed:
            return
        taker: Obj | None = None
        for obj in rendered:
            if obj["kind"] in (DISAGG_POOL.kind, DEPLOYMENT.kind) and labels_of(obj).get(LABEL_POOL) == flip.taking:
                await self._apply(run, obj)
                taker = run.children.get(DEPLOYMENT.kind, name_of(obj)) or taker
        if taker is None or not any(name_of(pod) == flip.pod for pod in run.children.pods):
            run.live.flip = None
            return
        run.view.certain()
        await pod_moves.move(run.kube, run.key, flip, taker)
        run.children.pods = [pod for pod in run.children.pods if name_of(pod) != flip.pod]
        took_s = self._clock() - flip.since_s
        run.live.flip, run.live.flips_s = None, (*run.live.flips_s[-3:], took_s)
        run.notes.append(pod_moves.moved(flip, took_s))

    def _note_scaling(self, run: Pass, obj: Obj) -> None:
        if obj["kind"] != DISAGG_POOL.kind:
            return
        role = str(obj["spec"]["role"])
        decision = run.live.decisions.get(role)
        if decision is None or run.plan.scaling.dry_run or decision.to == decision.current:
            return
        if run.pools[role].count == decision.to:
            note = decision_report.scaled_note(role, decision)
            run.notes.append(note)
            self._metrics.scaling.scaled.labels(*run.key, role, "up" if note.reason == "ScaledUp" else "down").inc()

    async def _report(self, run: Pass) -> None:
        revisions = {} if run.step is None else run.step.target
        observed = await self._looker.observe(run.plan, run.children, run.pools, run.live, run.key, revisions)
        if observed.network.known and not observed.network.ok:
            run.waits_s.append(NETWORK_RETRY_S)
        stored, wall = run.resource.get("status") or {}, self._wall()
        new = conditions.build(run_intent.of(run, self._zero, stored, wall), observed, stored, wall)
        self._zero.told(run.key, run.live, new)
        if run.step is not None and (progress := progress_status(run.step.plan.progress)) is not None:
            new["rollout"] = progress
        await self._write_pool_statuses(run, observed)
        await self.statuses.write(run.resource, new)
        told, run.live.notes = run.live.notes, []
        await self._recorder.send(run.resource, [*run.notes, *told, *changes.of_change(stored, new)])

    async def _write_pool_statuses(self, run: Pass, observed: Observed) -> None:
        for role in ROLES:
            if (pool := run.pool(role)) is not None:
                seen = observed.pools[role]
                counts = {"replicas": seen.current, "readyReplicas": seen.ready}
                now = {"observedGeneration": pool["metadata"].get("generation", 0)}
                await self.statuses.write(pool, {**now, **counts, "selector": selector_text(run.key[1], role)})
