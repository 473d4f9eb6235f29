"""The reconciler: one run reads everything about one resource, decides, and writes what differs.

The decisions are made in PURE modules. Reconciling is level-based: nothing here remembers an event
or a step, so a run that is interrupted between any two writes is simply repeated. Deletion is left
to the garbage collector: every child carries an ownerReference, and no finalizer delays the
deletion of the resource.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.controller import children as kids
from disagg_operator.controller import decision_report, pod_moves, replicas, runtime_updates
from disagg_operator.controller.acceptance import AcceptedDeployment, Refused
from disagg_operator.controller.children import ChildKey, Children, NameTaken
from disagg_operator.controller.feasibility import uneven
from disagg_operator.controller.intent import intent_of
from disagg_operator.controller.judge import Judge, Judgement
from disagg_operator.controller.metrics import Metrics
from disagg_operator.controller.rehearsal import DENIED_RETRY_S, NAME_TAKEN_RETRY_S, NO_UID, in_one, rehearse
from disagg_operator.controller.replicas import Replicas
from disagg_operator.controller.runtime_updates import ChosenRuntime, RuntimeUpdates
from disagg_operator.controller.status_inputs import Looker
from disagg_operator.desired import Facts, Images, NetworkAccess, pins, render
from disagg_operator.desired.names import key_secret_name, pool_name, selector_text
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, Denied, Forbidden, Invalid, NotFound
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
from disagg_operator.status import changes, conditions, unsettled
from disagg_operator.status.events import NORMAL, Note
from disagg_operator.status.recorder import Recorder
from disagg_operator.status.workloads import Observed
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Pass:
    """The data that one run has gathered so far."""

    key: Key
    resource: Obj
    live: Live
    judgement: Judgement
    children: Children
    runtime: ChosenRuntime
    pools: dict[str, Replicas] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    blocked: frozenset[ChildKey] = frozenset()
    """The objects that the API server refuses now; they are left as they are."""

    @property
    def plan(self) -> AcceptedDeployment:
        """What is served."""
        return self.judgement.plan

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
        judge: Judge,
        metrics: Metrics,
        images: Images,
        updates: RuntimeUpdates,
        wall: Callable[[], str],
        new_cluster_key: Callable[[], str],
        clock: Callable[[], float],
        access: NetworkAccess = NetworkAccess(),  # noqa: B008 (it cannot change)
    ) -> None:
        self._kube = kube
        self._live = live
        self._recorder = recorder
        self._judge = judge
        self._metrics = metrics
        self._images = images
        self._updates = updates
        self._access = access
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
            self._judge.forget(key)
            return None
        live = self._live.of(key, uid_of(resource))
        children = await kids.read(self._kube, key)
        try:
            judgement = await self._judge.judge(resource, children)
            run = await self._rehearsed(self._begin(key, resource, live, judgement, children))
            await self._judge.accepted(resource, run.judgement)
            rendered = await self._write(run)
        except (Refused, NameTaken, Invalid, Denied) as error:
            refused = _refusal(error)
            live.plan = None
            await self._refuse(resource, refused.reason, str(refused))
            return refused.retry_s
        live.plan = run.plan.scaling
        await self._report(run, rendered)
        self._updates.note(key, run.runtime)
        return run.judgement.retry_s

    def _begin(self, key: Key, resource: Obj, live: Live, judgement: Judgement, children: Children) -> _Pass:
        runtime = runtime_updates.choose(
            resource, judgement.plan.resource, children.objects, self._images, lambda: self._updates.may_begin(key)
        )
        return _Pass(key, resource, live, judgement, children, runtime)

    async def _rehearsed(self, run: _Pass) -> _Pass:
        """Let the API server judge what is about to be written, and return the run that may go on.

        If it refuses the spec as it is written, that is the one that was accepted last. Of this
        one, everything is written that is not refused. Raises Refused.
        """
        refused = await self._rehearse(run)
        if refused and run.judgement.refusal is None:
            judgement = await self._judge.fall_back(run.resource, run.children, in_one(refused.values()))
            run = self._begin(run.key, run.resource, run.live, judgement, run.children)
            refused = await self._rehearse(run)
        run.blocked = frozenset(refused)
        return run

    async def _rehearse(self, run: _Pass) -> dict[ChildKey, Refused]:
        for role in ROLES:
            run.pools[role] = self._replicas(run, role)
        facts = await self._facts(run)
        uids = {role: NO_UID if (pool := run.pool(role)) is None else uid_of(pool) for role in ROLES}
        rendered = render(run.plan.resource, replace(facts, pool_uids=uids))
        owners = kids.owners_of(run.resource, run.children)
        return await rehearse(self._kube, run.judgement.spec, rendered, run.children, owners)

    async def _facts(self, run: _Pass) -> Facts:
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

    async def _write(self, run: _Pass) -> list[Obj]:
        """Apply the rendered objects and prune the others.

        A pool's children are rendered with the pool's uid, so a new pool takes a second round.
        """
        facts = await self._facts(run)
        for _ in range(2):
            uids = {role: uid_of(pool) for role in ROLES if (pool := run.pool(role)) is not None}
            rendered = render(run.plan.resource, replace(facts, pool_uids=uids))
            await self._move_pod(run, rendered)
            for obj in rendered:
                await self._apply(run, obj)
            if len(uids) == len(ROLES):
                break
        for gone in await kids.prune(self._kube, rendered, run.children, kids.owners_of(run.resource, run.children)):
            log.info("%s/%s: deleted %s %s", *run.key, gone["kind"], name_of(gone))
        return rendered

    async def _apply(self, run: _Pass, obj: Obj) -> None:
        if kids.key_of(obj) in run.blocked:
            return
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
        name = pool_name(run.key[1], flip.taking)
        for obj in rendered:
            if obj["kind"] in (DISAGG_POOL.kind, DEPLOYMENT.kind) and name_of(obj) == name:
                await self._apply(run, obj)
        taker = run.children.get(DEPLOYMENT.kind, name)
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
        pods = [pod for pod in run.children.pods if pool_of(pod) == role]
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

    async def _report(self, run: _Pass, rendered: list[Obj]) -> None:
        observed = await self._looker.observe(run.plan, run.children, run.pools, run.live, run.key)
        stored = run.resource.get("status") or {}
        new = conditions.build(self._intent(run, rendered, stored), observed, stored, self._wall())
        await self._write_pool_statuses(run, observed)
        await self._write_status(run.resource, new)
        await self._recorder.send(run.resource, [*run.notes, *changes.of_change(stored, new)])

    def _intent(self, run: _Pass, rendered: list[Obj], stored: Obj) -> conditions.Intent:
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
        judged = run.judgement
        return intent_of(
            run.plan,
            tuple(pools),
            _revision(rendered),
            run.live.trouble,
            refusal=judged.refusal,
            warnings=(*judged.warnings, *uneven({role: run.pools[role].count for role in ROLES})),
            update=run.runtime.update,
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

    async def tell_failure(self, key: Key, reason: str, message: str) -> None:
        """Write into status that the reconcile of a resource fails and is tried again.

        Raises KubeError.
        """
        resource = await self._kube.get(DISAGG_DEPLOYMENT, *key)
        if resource is None:
            return
        stored = resource.get("status") or {}
        generation = int(resource["metadata"].get("generation", 0))
        new = unsettled.failed(generation, reason, message, stored, self._wall())
        await self._write_status(resource, new)
        await self._recorder.send(resource, changes.of_change(stored, new))

    async def _write_status(self, resource: Obj, new: Obj) -> None:
        if new == (resource.get("status") or {}):
            return
        meta = {"name": name_of(resource), "namespace": resource["metadata"]["namespace"]}
        head = {"apiVersion": resource["apiVersion"], "kind": resource["kind"], "metadata": meta}
        await self._kube.apply_status({**head, "status": new})


def _refusal(error: Exception) -> Refused:
    """Return the refusal that an error means."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, NameTaken):
        return Refused("NameConflict", str(error), NAME_TAKEN_RETRY_S)
    if isinstance(error, Denied):
        return Refused("AdmissionDenied", str(error), DENIED_RETRY_S)
    return Refused("InvalidSpec", str(error))


def _revision(rendered: list[Obj]) -> str:
    """Return one name for the revisions of both pools, whose pods change independently."""
    found = [labels[LABEL_REVISION] for obj in rendered if LABEL_REVISION in (labels := labels_of(obj))]
    return "-".join(dict.fromkeys(found))
