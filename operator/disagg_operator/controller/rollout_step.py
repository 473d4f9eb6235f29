"""PURE: One step of a rollout, as objects: what is applied, what changes its size, and what stays.

The planner decides in numbers; here the numbers become Deployments, a ControllerRevision, and the
annotations by which the next run knows what has served and what has failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.rollout import amount_of
from disagg_operator.controller import canary_step, router_turn
from disagg_operator.controller.router_turn import RouterTurn
from disagg_operator.desired import names
from disagg_operator.kube.pods import epoch_s
from disagg_operator.kube.resources import DEPLOYMENT, annotations_of, labels_of, name_of, uid_of
from disagg_operator.rollout import looking, placing, revisions, telling
from disagg_operator.rollout.canary_record import FAILED, CanaryRecord
from disagg_operator.rollout.canary_reports import CanaryReports
from disagg_operator.rollout.load_watch import LoadWatch
from disagg_operator.rollout.planner import plan
from disagg_operator.rollout.revisions import KnownRevision
from disagg_operator.rollout.steady_times import SteadyTimes, progress_of
from disagg_operator.rollout.values import (
    RolloutPlan,
    RolloutRules,
    RolloutState,
    RolloutView,
    WorkersKey,
)
from disagg_operator.status.kv_links import RouterView
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION
from disagg_wire.roles import DECODE, PREFILL, ROLES

_DEFAULT_ACCELERATOR = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one step is decided by."""

    dd: DisaggDeployment
    resource: Obj
    """The resource with the spec that is served and the generation of that."""
    rendered: Sequence[Obj]
    objects: Sequence[Obj]
    """The live objects of the deployment."""
    pods: Sequence[Obj]
    sizes: Mapping[str, int]
    """The size of each pool, by role."""
    view: RouterView | None
    now: str
    """The time in RFC 3339."""
    reports: CanaryReports = field(default_factory=CanaryReports)
    """What the routers have counted of a revision that is tried."""
    steady: SteadyTimes = field(default_factory=SteadyTimes)
    clock_s: float = 0.0
    """The time of the monotonic clock by which `steady` and `loading` count."""
    loading: LoadWatch = field(default_factory=LoadWatch)
    """Whether workers load their models on."""


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step of a rollout."""

    objects: list[Obj]
    """The objects to apply, in order."""
    sizes: list[tuple[Obj, int]]
    """Live Deployments that only change their number of replicas."""
    kept: frozenset[tuple[str, str]]
    """(kind, name) of the objects that are neither applied nor deleted."""
    target: Mapping[str, str]
    plan: RolloutPlan
    view: RolloutView
    record: Obj | None = None
    """The ControllerRevision to write before the workloads, or None."""
    failed: Obj | None = None
    """The ControllerRevision to mark as failed, or None."""
    marks: Mapping[WorkersKey, str] | None = None
    """The annotations of workloads that have served now for the first time, by key."""
    canary: tuple[Obj, CanaryRecord] | None = None
    """A ControllerRevision, and what is to be written down there of its canary."""
    exchanges: bool = False
    """Whether this step ends all old workers before new ones are there."""

    @property
    def revision(self) -> str:
        return revisions.pair_name(self.target[PREFILL], self.target[DECODE])


def rules_of(dd: DisaggDeployment, sizes: Mapping[str, int]) -> RolloutRules:
    """Return the rules of a deployment whose pools have these sizes."""
    spec = dd.spec.rollout
    surge, unavailable = {}, {}
    for role in ROLES:
        pool = dd.spec.pool(role)
        more = spec.max_surge if pool.max_surge is None else pool.max_surge
        less = spec.max_unavailable if pool.max_unavailable is None else pool.max_unavailable
        surge[role] = amount_of(more, sizes[role], up=True)
        unavailable[role] = amount_of(less, sizes[role], up=False)
    return RolloutRules(
        surge=surge,
        unavailable=unavailable,
        surge_gpus=spec.max_surge_gpus,
        recreate=spec.strategy == "Recreate",
        paused=spec.paused,
        deadline_s=float(spec.progress_deadline_seconds),
    )


def decide(inputs: Inputs) -> RolloutStep | None:
    """Return the next step; None while the pools are not there whose workers are rolled out."""
    rendered = _workloads_in(inputs.rendered)
    if {role for role, _ in rendered} != set(ROLES):
        return None
    live = looking.workloads(inputs.objects)
    known = revisions.known_revisions(inputs.objects)
    declared = dict(rendered.keys())
    back = _rolled_back_to(inputs, known, live, declared)
    target = declared if back is None else {role: back.of(role) for role in ROLES}
    stored = _state(inputs, rendered, live, known, target)
    state = inputs.steady.by_this_process(stored, inputs.clock_s)
    if (moved_s := inputs.loading.moved_s(target.items())) is not None:
        state = replace(state, moved_s=state.now_s - (inputs.clock_s - moved_s))
    mine = _revision_of(known, declared)
    trial = canary_step.trial_of(inputs.dd, inputs.resource, known, mine, back, state, inputs.reports)
    state = canary_step.without_given_up(state, trial)
    found = plan(state, replace(rules_of(inputs.dd, inputs.sizes), canary=trial.percent))
    progress = inputs.steady.to_store(stored.progress, state.progress, found.progress, inputs.clock_s)
    found = replace(found, progress=progress)
    step = _step(inputs, rendered, live, known, state, found, back)
    return _tried(inputs, step, trial, live, known, mine, back)


def _tried(
    inputs: Inputs,
    step: RolloutStep,
    trial: canary_step.Trial,
    live: Mapping[WorkersKey, Obj],
    known: Sequence[KnownRevision],
    mine: KnownRevision | None,
    back: KnownRevision | None,
) -> RolloutStep:
    """Return the step with what the canary adds to it."""
    step = replace(step, objects=canary_step.labelled(step.objects, trial.words))
    if back is not None:
        return step
    reason, message = canary_step.told(trial, step.plan)
    step = replace(step, view=replace(step.view, reason=reason, message=message))
    if mine is None:
        return step
    rollout = inputs.dd.spec.rollout
    earlier = _earlier(mine, known, live) is not None
    since = "" if trial.record is None else trial.record.since
    passed_s = inputs.steady.tried_for_s(since, inputs.now, inputs.clock_s) if since else 0.0
    here = canary_step.Circumstances(rollout.canary is not None, earlier, rollout.paused, inputs.now, passed_s)
    whose, record = canary_step.written(trial, mine, known, step.plan, here)
    where = revisions.by_name(inputs.objects, inputs.dd.metadata.name, whose)
    return replace(
        step,
        canary=None if record is None or where is None else (where, record),
        failed=where if record is not None and record.verdict == FAILED else step.failed,
    )


def _revision_of(known: Sequence[KnownRevision], pair: Mapping[str, str]) -> KnownRevision | None:
    return next((r for r in known if r.pair == (pair[PREFILL], pair[DECODE])), None)


def _workloads_in(rendered: Sequence[Obj]) -> dict[WorkersKey, Obj]:
    return looking.workloads(rendered)


def _rolled_back_to(
    inputs: Inputs, known: Sequence[KnownRevision], live: Mapping[WorkersKey, Obj], declared: Mapping[str, str]
) -> KnownRevision | None:
    """Return the revision to which a rollout that failed has gone back, or None."""
    mine = _revision_of(known, declared)
    generation = int(inputs.resource["metadata"].get("generation") or 0)
    if mine is None or mine.failed_generation != generation:
        return None
    return _earlier(mine, known, live) if inputs.dd.spec.rollout.auto_rollback or _canary_failed(mine) else None


def _canary_failed(revision: KnownRevision) -> bool:
    return revision.canary is not None and revision.canary.verdict == FAILED


def _earlier(
    mine: KnownRevision, known: Sequence[KnownRevision], live: Mapping[WorkersKey, Obj]
) -> KnownRevision | None:
    """Return the newest other revision that is not given up, and whose workloads have served."""
    served = {key for key, obj in live.items() if looking.SERVED_ANNOTATION in annotations_of(obj)}
    good = [r for r in known if r.name != mine.name and not r.given_up]
    return next((r for r in reversed(good) if all((role, r.of(role)) in served for role in ROLES)), None)


def _state(
    inputs: Inputs,
    rendered: Mapping[WorkersKey, Obj],
    live: Mapping[WorkersKey, Obj],
    known: Sequence[KnownRevision],
    target: Mapping[str, str],
) -> RolloutState:
    accelerators = _accelerators(inputs.dd, known)
    told = _told(inputs.view)
    keys = [key for key in live if key[1]]
    found = []
    for key in keys:
        pods = looking.pods_of(inputs.pods, key)
        workers = looking.workers(
            key, live[key], pods, told or looking.Told(), looking.order_of(known, key), accelerators
        )
        # Workloads of releases that kept no history carry no mark.
        old = key[1] != target[key[0]]
        if old and workers.gone and not workers.served:
            continue  # it has no pods yet, and will get none
        found.append(replace(workers, served=True) if old and workers.ready else workers)
    return RolloutState(
        workers=tuple(found),
        target=dict(target),
        wanted=dict(inputs.sizes),
        pairs=looking.pairs_of(known, keys),
        target_devices={
            role: looking.devices_of(rendered.get((role, target[role])) or live.get((role, target[role])), accelerators)
            for role in ROLES
        },
        linked=looking.linked(told, inputs.pods, target),
        now_s=epoch_s(inputs.now),
        progress=progress_of(inputs.resource),
    )


def _accelerators(dd: DisaggDeployment, known: Sequence[KnownRevision]) -> frozenset[str]:
    """Return the extended resources that count as accelerators, also those of earlier specs."""
    out = {_DEFAULT_ACCELERATOR}
    out |= {pool.accelerator.resource_name for role in ROLES if (pool := dd.spec.pool(role)).accelerator is not None}
    for revision in known:
        for role in ROLES:
            accelerator = (revision.spec.get(role) or {}).get("accelerator") or {}
            out.add(str(accelerator.get("resourceName", _DEFAULT_ACCELERATOR)))
    return frozenset(out)


def _told(view: RouterView | None) -> looking.Told | None:
    if view is None:
        return None
    compat = {link.pod: link.compat for link in view.workers}
    return looking.Told(compat, frozenset(view.moved), 0 < view.expected == view.healthy)


def _step(
    inputs: Inputs,
    rendered: Mapping[WorkersKey, Obj],
    live: Mapping[WorkersKey, Obj],
    known: Sequence[KnownRevision],
    state: RolloutState,
    found: RolloutPlan,
    back: KnownRevision | None,
) -> RolloutStep:
    target = state.target
    groups = {w.key: w for w in state.workers}
    busy = {key for key, w in groups.items() if not w.gone or w.served}
    old = {key: obj for key, obj in live.items() if key[1] != target[key[0]]}
    ended = {
        key
        for key in old
        if key not in groups
        or (found.replicas[key] == 0 and groups[key].gone and (found.proven or not groups[key].served))
    }
    own = {} if back is not None else {key: placing.placed(obj, key, live, busy) for key, obj in rendered.items()}
    reused = {name_of(obj) for obj in own.values()}
    staying = {key: obj for key, obj in live.items() if key not in ended | own.keys() and name_of(obj) not in reused}
    sizes = [(obj, found.replicas[key]) for key, obj in staying.items() if _replicas(obj) != found.replicas[key]]
    kept = {(DEPLOYMENT.kind, name_of(obj)) for obj in staying.values()}
    # Without workers, routers must know the name for which they are to hold requests next.
    old_workers = bool(staying) and any(inputs.sizes.values())
    routers = router_turn.turn(inputs.dd, inputs.rendered, inputs.objects, back, old_workers=old_workers)
    if (router := routers.left) is not None:
        kept.add((DEPLOYMENT.kind, name_of(router)))
        if _replicas(router) != inputs.dd.spec.router.replicas:
            sizes.append((router, inputs.dd.spec.router.replicas))
    names_live = [r.name for r in known if any((role, r.of(role)) in live for role in ROLES)]
    gone = set(revisions.superfluous(known, names_live, inputs.dd.spec.rollout.revision_history_limit))
    kept |= {_record_key(inputs.dd, r.name) for r in known if r.name not in gone}
    record = None if back is not None else _record(inputs, known, target)
    return RolloutStep(
        objects=_objects(inputs, own, found, routers),
        sizes=sizes,
        kept=frozenset(kept if record is None else kept | {("ControllerRevision", name_of(record))}),
        target=target,
        plan=found,
        view=_view(inputs, found, back, _revision_of(known, dict(rendered.keys()))),
        record=record,
        failed=_failed(inputs, known, live, found, target) if back is None else None,
        marks={
            key: looking.served_mark(groups[key])
            for role in ROLES
            if (key := (role, target[role])) in groups and found.proven and not _marked(live[key]) and groups[key].ready
        },
        exchanges=found.exchanging and any(w.desired for key, w in groups.items() if key in old),
    )


def _marked(obj: Obj) -> bool:
    return looking.SERVED_ANNOTATION in annotations_of(obj)


def _replicas(obj: Obj) -> int:
    return int((obj.get("spec") or {}).get("replicas") or 0)


def _record_key(dd: DisaggDeployment, revision: str) -> tuple[str, str]:
    return "ControllerRevision", revisions.object_name(dd.metadata.name, revision)


def _objects(inputs: Inputs, own: Mapping[WorkersKey, Obj], found: RolloutPlan, routers: RouterTurn) -> list[Obj]:
    """Return the rendered objects, with those of workers and routers as they are to be."""
    out = []
    for obj in inputs.rendered:
        labels = labels_of(obj)
        key = (labels.get(LABEL_POOL, ""), labels.get(LABEL_REVISION, ""))
        if obj["kind"] == DEPLOYMENT.kind and labels.get(LABEL_POOL) in ROLES:
            if key in own:
                own[key]["spec"]["replicas"] = found.replicas[key]
                out.append(own[key])
        elif not router_turn.is_router(obj, inputs.dd):
            out.append(obj)
        elif routers.applied is not None:
            out.append(routers.applied)
    return out


def _record(inputs: Inputs, known: Sequence[KnownRevision], target: Mapping[str, str]) -> Obj | None:
    """Return the ControllerRevision of the target if it is new, or declared again."""
    pair = target[PREFILL], target[DECODE]
    newest = known[-1] if known else None
    if newest is not None and newest.pair == pair:
        return None
    dd, name = inputs.dd, revisions.pair_name(*pair)
    metadata = names.metadata(
        dd,
        revisions.object_name(dd.metadata.name, name),
        "shared",
        names.owned_by_deployment(dd, uid_of(inputs.resource)),
    )
    again = next((r for r in known if r.pair == pair), None)
    spec = inputs.resource.get("spec") or {} if again is None else again.spec
    return revisions.revision_object(metadata, pair, spec, (0 if newest is None else newest.number) + 1)


def _failed(
    inputs: Inputs,
    known: Sequence[KnownRevision],
    live: Mapping[WorkersKey, Obj],
    found: RolloutPlan,
    target: Mapping[str, str],
) -> Obj | None:
    """Return the ControllerRevision of a rollout that is given up now, or None."""
    mine = _revision_of(known, target)
    if mine is None or not found.expired or not inputs.dd.spec.rollout.auto_rollback:
        return None
    if _earlier(mine, known, live) is None:
        return None
    return revisions.by_name(inputs.objects, inputs.dd.metadata.name, mine.name)


def _view(inputs: Inputs, found: RolloutPlan, back: KnownRevision | None, mine: KnownRevision | None) -> RolloutView:
    reason, message = found.reason, found.message
    if back is not None:
        why = f"the declared revision made no progress for {inputs.dd.spec.rollout.progress_deadline_seconds} s"
        reason = telling.ROLLED_BACK
        if mine is not None and mine.canary is not None and _canary_failed(mine):
            reason, why = telling.CANARY_FAILED, f"the declared revision serves worse ({mine.canary.message})"
        message = f"{why}, so that {back.name} is restored (an edit of the spec tries again): {found.message}"
    complete = (found.complete or found.single) and not found.expired and back is None
    return RolloutView(reason, message, complete=complete)
