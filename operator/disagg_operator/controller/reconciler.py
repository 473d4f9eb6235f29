"""The reconciler: one run reads everything about one resource, decides, and writes what differs.

The decisions are made in PURE modules. Reconciling is level-based: nothing here remembers an event
or a step, so a run that is interrupted between any two writes is simply repeated. Deletion is left
to the garbage collector: every child carries an ownerReference, and no finalizer delays the
deletion of the resource.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.controller import children as kids
from disagg_operator.controller import (
    decision_report,
    pod_moves,
    replicas,
    rollout_step,
    rollout_writes,
    runtime_updates,
)
from disagg_operator.controller.acceptance import AcceptedDeployment, Refused, accept
from disagg_operator.controller.children import Children, NameTaken
from disagg_operator.controller.intent import intent_of
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.replicas import Replicas
from disagg_operator.controller.rollout_step import Inputs, RolloutStep
from disagg_operator.controller.runtime_updates import ChosenRuntime, RuntimeUpdates
from disagg_operator.controller.status_inputs import Looker
from disagg_operator.desired import Facts, Images, pins, render
from disagg_operator.desired.names import key_secret_name, pool_name, selector_text
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, Forbidden, Invalid, NotFound
from disagg_operator.kube.pods import pool_of
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    NETWORK_ATTACHMENT,
    POD,
    SECRET,
    labels_of,
    name_of,
    uid_of,
)
from disagg_operator.rollout import looking
from disagg_operator.status import changes, conditions
from disagg_operator.status.events import NORMAL, Note
from disagg_operator.status.recorder import Recorder
from disagg_operator.status.workloads import Observed
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)

# A name that belongs to another object may become free, for example when a resource is recreated
# while the children of its predecessor are still being collected.
NAME_TAKEN_RETRY_S = 5.0
_AT_ONCE_S = 0.1


@dataclass(slots=True)
class _Pass:
    """The data that one run has gathered so far."""

    key: Key
    resource: Obj
    live: Live
    plan: AcceptedDeployment
    children: Children
    runtime: ChosenRuntime
    pools: dict[str, Replicas]
    notes: list[Note]
    step: RolloutStep | None = None

    def pool(self, role: str) -> Obj | None:
        """Return the DisaggPool of a role, or None if it does not exist."""
        return self.children.get(DISAGG_POOL.kind, pool_name(self.key[1], role))


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
        metrics: Metrics,
        images: Images,
        updates: RuntimeUpdates,
        wall: Callable[[], str],
        new_cluster_key: Callable[[], str],
        clock: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._live = live
        self._recorder = recorder
        self._metrics = metrics
        self._images = images
        self._updates = updates
        self._wall = wall
        self._new_cluster_key = new_cluster_key
        self._clock = clock
        self._looker = Looker(kube)

    async def run(self, key: Key) -> float | None:
        """Bring one resource to its desired state.

        Returns the number of seconds after which to reconcile again, or None. Raises KubeError.
        """
        resource = await self._kube.get(DISAGG_DEPLOYMENT, *key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            self._updates.note(key, None)
            return None
        live = self._live.of(key, uid_of(resource))
        try:
            plan = accept(resource)
            found = await kids.read(self._kube, key)
            runtime = runtime_updates.choose(
                resource, plan.resource, found.objects, self._images, lambda: self._updates.may_begin(key)
            )
            run = _Pass(key, resource, live, plan, found, runtime, {}, [])
            await self._write(run)
        except Refused as error:
            await self._refuse(resource, error.reason, str(error))
            return None
        except NameTaken as error:
            await self._refuse(resource, "NameConflict", str(error))
            return NAME_TAKEN_RETRY_S
        except Invalid as error:
            # The API server rejects a rendered object: a podTemplate or a quantity that the schema
            # cannot check.
            await self._refuse(resource, "InvalidSpec", str(error))
            return None
        await self._report(run)
        self._updates.note(key, runtime)
        return await self._after(run)

    async def _after(self, run: _Pass) -> float | None:
        """Write down what the rollout has shown, and return when to look again, or None."""
        if run.step is None:
            return None
        generation = int(run.resource["metadata"].get("generation", 0))
        again = await rollout_writes.mark(self._kube, run.key, run.step, run.children, generation)
        return _AT_ONCE_S if again else run.step.plan.wake_s

    async def _write(self, run: _Pass) -> None:
        """Apply the rendered objects and prune the others.

        A pool's children are rendered with the pool's uid, so a new pool takes a second round.
        """
        flip = run.live.flip
        if flip is not None and flip.changed and len(looking.workloads(run.children.objects.values())) > len(ROLES):
            run.live.flip = None  # its revision may be an old one: the worker is asked back into its role
        for role in ROLES:
            run.pools[role] = self._replicas(run, role)
        has_networks = run.plan.attachment is not None and await self._kube.has_api(NETWORK_ATTACHMENT)
        cluster_key = None
        if run.children.get(SECRET.kind, key_secret_name(run.key[1])) is None:
            cluster_key = self._new_cluster_key()
        for _ in range(2):
            uids = {role: uid_of(pool) for role in ROLES if (pool := run.pool(role)) is not None}
            facts = Facts(
                uid=uid_of(run.resource),
                replicas={role: run.pools[role].count for role in ROLES},
                declared={role: text for role in ROLES if (text := run.pools[role].declared) is not None},
                pool_uids=uids,
                images=run.runtime.pins.images,
                runtime=pins.to_text(run.runtime.pins),
                cluster_key=cluster_key,
                attachments_available=has_networks,
            )
            rendered = self._rolled(run, render(run.plan.resource, facts))
            await kids.rehearse(self._kube, rendered, run.children)
            if run.step is not None:
                await rollout_writes.record(self._kube, run.key, run.step, run.children)
            await self._move_pod(run, rendered)
            for obj in rendered:
                await self._apply(run, obj)
            if len(uids) == len(ROLES):
                break
        if run.step is None:
            return
        for deployment, count in run.step.sizes:
            await self._mark_victims(run, {**deployment, "spec": {**deployment["spec"], "replicas": count}})
            await rollout_writes.resize(self._kube, run.key, deployment, count, run.children)
        owners = kids.owners_of(run.resource, run.children)
        for gone in await kids.prune(self._kube, rendered, run.children, owners, run.step.kept):
            log.info("%s/%s: deleted %s %s", *run.key, gone["kind"], name_of(gone))

    def _rolled(self, run: _Pass, rendered: list[Obj]) -> list[Obj]:
        """Let the planner decide on the Deployments of workers, and return all objects."""
        sizes = {role: run.pools[role].count for role in ROLES}
        objects = list(run.children.objects.values())
        run.step = rollout_step.decide(
            Inputs(
                run.plan.resource,
                run.resource,
                rendered,
                objects,
                run.children.pods,
                sizes,
                run.live.view,
                self._wall(),
            )
        )
        if run.step is None:  # a pool is still to be made; its Deployments need its uid
            return [obj for obj in rendered if obj["kind"] != DEPLOYMENT.kind or not labels_of(obj).get(LABEL_POOL)]
        if run.step.exchanges:
            self._metrics.exchanges.labels(*run.key).inc()
        return run.step.objects

    async def _apply(self, run: _Pass, obj: Obj) -> None:
        if obj["kind"] == DEPLOYMENT.kind:
            await self._mark_victims(run, obj)
        live = run.children.get(str(obj["kind"]), name_of(obj))
        if obj["kind"] == DISAGG_POOL.kind and live is not None:
            # If another client writes /scale between the read and this write, the apply conflicts
            # and the run starts over.
            obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": live["metadata"]["resourceVersion"]}}
        if await kids.apply(self._kube, obj, run.children, kids.owners_of(run.resource, run.children)):
            log.info("%s/%s: applied %s %s", *run.key, obj["kind"], name_of(obj))
            self._note_scaling(run, obj)

    async def _move_pod(self, run: _Pass, rendered: list[Obj]) -> None:
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
        await pod_moves.move(self._kube, run.key, flip, taker)
        took_s = self._clock() - flip.since_s
        run.live.flip, run.live.flips_s = None, (*run.live.flips_s[-3:], took_s)
        note = (
            f"worker {flip.pod} went from {flip.giving} to {flip.taking} in {took_s:.1f} s, "
            "without loading its weights again"
        )
        run.notes.append(Note(NORMAL, "RoleFlipped", note))

    def _replicas(self, run: _Pass, role: str) -> Replicas:
        pool = run.pool(role)
        decision = run.live.decisions.get(role)
        current = None if pool is None else (pool.get("spec") or {}).get("replicas")
        flip = run.live.flip
        if flip is not None and flip.changed and current is not None and role in (flip.giving, flip.taking):
            # Only once: a repeated run finds that one of the numbers has already changed.
            flip.sizes.setdefault(role, current + (1 if role == flip.taking else -1))
            return replicas.decide(
                run.plan.declared[role], pool, flip.sizes[role], suspended=run.plan.scaling.suspended
            )
        wanted = decision_report.to_carry_out(decision, current, run.plan.scaling.dry_run)
        return replicas.decide(run.plan.declared[role], pool, wanted, suspended=run.plan.scaling.suspended)

    async def _mark_victims(self, run: _Pass, rendered: Obj) -> None:
        """Set the deletion costs of a workload's pods before it shrinks.

        The ReplicaSet controller then deletes the least loaded pods first.
        """
        now = run.children.get(DEPLOYMENT.kind, name_of(rendered))
        role = (rendered["metadata"].get("labels") or {}).get(LABEL_POOL, "")
        if now is None or role not in ROLES or (now["spec"].get("replicas") or 0) <= rendered["spec"]["replicas"]:
            return
        revisions = (None, labels_of(rendered).get(LABEL_REVISION))
        pods = [p for p in run.children.pods if pool_of(p) == role and labels_of(p).get(LABEL_REVISION) in revisions]
        loads = {name_of(pod): run.live.loads[name_of(pod)] for pod in pods if name_of(pod) in run.live.loads}
        for pod, cost in decision_report.deletion_costs(pods, loads).items():
            patch = {"metadata": {"annotations": {decision_report.DELETION_COST: cost}}}
            try:
                await self._kube.merge(POD, run.key[0], pod, patch)
            except NotFound:
                continue
            except (Conflict, Forbidden, Invalid) as error:
                log.warning("%s/%s: deletion cost of %s not set: %s", *run.key, pod, error)

    def _note_scaling(self, run: _Pass, obj: Obj) -> None:
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

    async def _report(self, run: _Pass) -> None:
        revisions = {} if run.step is None else run.step.target
        observed = await self._looker.observe(run.plan, run.children, run.pools, run.live, run.key, revisions)
        stored = run.resource.get("status") or {}
        new = conditions.build(self._intent(run, stored), observed, stored, self._wall())
        if run.step is not None and (progress := rollout_step.progress_status(run.step.plan.progress)) is not None:
            new["rollout"] = progress
        await self._write_pool_statuses(run, observed)
        await self._write_status(run.resource, new)
        await self._recorder.send(run.resource, [*run.notes, *changes.of_change(stored, new)])

    def _intent(self, run: _Pass, stored: Obj) -> conditions.Intent:
        before = {str(p.get("name")): p.get("lastDecision") for p in stored.get("pools") or []}
        pools = []
        for role in ROLES:
            scaled = role in run.plan.scaling.policies
            decision = run.live.decisions.get(role) if scaled else None
            dry = run.plan.scaling.dry_run
            pools.append(
                conditions.PoolIntent(
                    name=role,
                    desired=run.pools[role].count,
                    owner=run.pools[role].owner,
                    selector=selector_text(run.key[1], role),
                    autoscaled=scaled,
                    scaling_blind=decision is not None and decision.blind,
                    last_decision=decision_report.last_decision(before.get(role), decision, dry, self._wall())
                    if scaled
                    else None,
                )
            )
        revision = "" if run.step is None else run.step.revision
        return replace(
            intent_of(run.plan, tuple(pools), revision, run.live.trouble, run.runtime.update),
            rollout=None if run.step is None else run.step.view,
        )

    async def _write_pool_statuses(self, run: _Pass, observed: Observed) -> None:
        for role in ROLES:
            pool = run.pool(role)
            if pool is None:
                continue
            seen = observed.pools[role]
            new = {
                "observedGeneration": pool["metadata"].get("generation", 0),
                "replicas": seen.current,
                "readyReplicas": seen.ready,
                "selector": selector_text(run.key[1], role),
            }
            await self._write_status(pool, new)

    async def _refuse(self, resource: Obj, reason: str, message: str) -> None:
        stored = resource.get("status") or {}
        new = conditions.refused(int(resource["metadata"].get("generation", 0)), reason, message, stored, self._wall())
        await self._write_status(resource, new)
        await self._recorder.send(resource, changes.of_change(stored, new))

    async def _write_status(self, resource: Obj, new: Obj) -> None:
        if new == (resource.get("status") or {}):
            return
        meta = {"name": name_of(resource), "namespace": resource["metadata"]["namespace"]}
        head = {"apiVersion": resource["apiVersion"], "kind": resource["kind"], "metadata": meta}
        await self._kube.apply_status({**head, "status": new})
