"""The loop of DisaggScalers, which takes each of them from the metrics of its pods to its targets.

The stages are those of our own pools, and so are the policy, the records and the saved state. There
is no watch and no cache: each tick lists the resources and reads what it needs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from disagg_operator.api.namespace_policy import Policy
from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.autoscaling.records.decision_log import DecisionLog
from disagg_operator.autoscaling.scaling_metrics import ScalingMetrics
from disagg_operator.autoscaling.signals import pod_facts
from disagg_operator.autoscaling.signals.engine_fold import EngineLook, EngineMemory, observe_engines
from disagg_operator.autoscaling.signals.fold import Look
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.autoscaling.signals.policy_inputs import Seen, observe
from disagg_operator.autoscaling.signals.prometheus_access import Unreadable
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.decision_report import scaled_note
from disagg_operator.controller.scalers.owners import other_owner
from disagg_operator.controller.scalers.pod_reports import Asked, PodReports
from disagg_operator.controller.scalers.scale_targets import RIGHT_MISSING, FoundTarget, TargetReader, Unscalable
from disagg_operator.controller.scalers.scaler_settings import RefusedScaler, ScalerPlan, scaler_plan
from disagg_operator.controller.scalers.scaler_status import (
    PoolFound,
    ScalerFindings,
    scaler_news,
    scaler_status,
)
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import Conflict, Forbidden, KubeError
from disagg_operator.kube.pods import is_ready
from disagg_operator.kube.resources import (
    DISAGG_SCALER,
    HORIZONTAL_POD_AUTOSCALER,
    POD,
    SCALED_OBJECT,
    name_of,
    namespace_of,
    uid_of,
)
from disagg_operator.status.events import Note
from disagg_operator.status.recorder import Recorder
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.roles import DECODE, PREFILL, ROLES

log = logging.getLogger(__name__)

_AT_ONCE = 8
_KEPT_STATUS = ("observedGeneration", "conditions", "prefill", "decode", "pools")


def shown_key(key: Key) -> Key:
    """Return the key of a DisaggScaler in metrics, where DisaggDeployments have theirs."""
    return key[0], f"scaler/{key[1]}"


def record_key(key: Key) -> Key:
    """Return the key of its records. Names of resources have no underscore."""
    return key[0], f"scaler_{key[1]}"


@dataclass(frozen=True, slots=True)
class _ScalerJob:
    """One DisaggScaler in one tick."""

    key: Key
    resource: Obj
    scalers: tuple[Obj, ...]
    """All DisaggScalers of its namespace."""
    entry: Live


class ScalerLoop:
    """The loop. `clock` is monotonic; `epoch` tells the seconds since 1970 and never goes back."""

    def __init__(
        self,
        *,
        kube: HttpKube,
        reports: PodReports,
        states: StateKeeper,
        decision_log: DecisionLog,
        metrics: ScalingMetrics,
        recorder: Recorder,
        policy: Policy,
        namespaces: tuple[str, ...],
        timeout_s: float,
        clock: Callable[[], float],
        epoch: Callable[[], float],
        wall: Callable[[], str],
    ) -> None:
        self._kube = kube
        self._targets = TargetReader(kube, clock)
        self._reports = reports
        self._states = states
        self._log = decision_log
        self._metrics = metrics
        self._recorder = recorder
        self._policy = policy
        self._namespaces = namespaces
        self._timeout_s = timeout_s
        self._epoch = epoch
        self._wall = wall
        self._live = LiveTable()
        self._engines: dict[str, EngineMemory] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def tick(self) -> None:
        """Take every DisaggScaler through the stages. Raises KubeError if they cannot be listed."""
        spaces = self._namespaces or (None,)
        found = [obj for space in spaces for obj in await self._kube.list(DISAGG_SCALER, space)]
        for gone in self._live.forget_all_but(frozenset(_key(obj) for obj in found)):
            self._log.forget(record_key(gone))
            self._metrics.forget(shown_key(gone))
            self._reports.forget(gone)
        self._engines = {uid: kept for uid, kept in self._engines.items() if uid in {uid_of(obj) for obj in found}}
        by_space: dict[str, list[Obj]] = {}
        for obj in found:
            by_space.setdefault(_key(obj)[0], []).append(obj)
        jobs = [
            _ScalerJob(_key(obj), obj, tuple(by_space[_key(obj)[0]]), self._live.of(_key(obj), uid_of(obj)))
            for obj in found
        ]
        await asyncio.gather(*(self._guarded(job) for job in jobs))

    async def keep(self) -> None:
        """Save what has been learned, before the operator stops."""
        await self._states.save_all(self._live)

    def end_term(self) -> None:
        """Forget everything, because others may act before this operator leads again."""
        self._live.forget_all_but(frozenset())
        self._engines.clear()

    async def _guarded(self, job: _ScalerJob) -> None:
        try:
            async with self._gate, asyncio.timeout(self._timeout_s):
                await self._one(job)
        except (KubeError, TimeoutError) as error:
            log.warning("DisaggScaler %s/%s: %s", *job.key, error or f"not done within {self._timeout_s:g} s")
        except Exception:
            # A bug must affect one resource and not the whole operator.
            log.exception("DisaggScaler %s/%s: no decision", *job.key)
            self._metrics.undecided.labels(*shown_key(job.key)).inc()

    async def _one(self, job: _ScalerJob) -> None:
        active, notes = False, list[Note]()
        try:
            plan = scaler_plan(job.resource, self._policy.of(job.key[0]))
            active = plan.active
            found, notes = await self._looked(job, plan)
        except RefusedScaler as error:
            found = ScalerFindings(active, refused=(error.reason, str(error)))
        except Unscalable as error:
            found = ScalerFindings(active, unscalable=(error.reason, str(error)))
        await self._tell(job, found, notes)

    async def _looked(self, job: _ScalerJob, plan: ScalerPlan) -> tuple[ScalerFindings, list[Note]]:
        """Read, decide and carry out. Raises Unscalable."""
        entry, spec = job.entry, plan.resource.spec
        read = await asyncio.gather(*(self._targets.read(job.key[0], spec.pool(role)) for role in ROLES))
        targets = dict(zip(ROLES, read, strict=True))
        owners = await self._owners(job, targets)
        blind, fresh = None, False
        if any(target.replicas == 0 for target in targets.values()):
            entry.decisions.clear()
        else:
            try:
                fresh = await self._decide(job, plan, targets)
            except Unreadable as error:
                blind = (error.reason, str(error))
                entry.decisions.clear()
        pools = {
            role: PoolFound(
                target.replicas, sum(map(is_ready, target.pods)), owners[role], entry.decisions.get(role), fresh
            )
            for role, target in targets.items()
        }
        found = ScalerFindings(plan.active, blind=blind, pools=pools)
        if not found.may_scale:
            return found, []
        return await self._carry_out(job, found, targets)

    async def _owners(self, job: _ScalerJob, targets: Mapping[str, FoundTarget]) -> dict[str, str | None]:
        """Return who else sets each target. Raises Unscalable if that cannot be known."""
        space = job.key[0]
        try:
            objects, autoscalers = await asyncio.gather(
                self._kube.list(SCALED_OBJECT, space), self._kube.list(HORIZONTAL_POD_AUTOSCALER, space)
            )
        except Forbidden as error:
            raise Unscalable(RIGHT_MISSING, f"whether others set the targets is not known: {error}") from None
        return {
            role: other_owner(target.ref, target.obj, objects, autoscalers, job.scalers, job.resource)
            for role, target in targets.items()
        }

    async def _decide(self, job: _ScalerJob, plan: ScalerPlan, targets: Mapping[str, FoundTarget]) -> bool:
        """Make one step of the policy, and return whether it decided. Raises Unreadable.

        What it decides is kept in the entry.
        """
        entry = job.entry
        seen = await self._seen(job, plan, targets)
        if not await self._states.ready(job.key, entry, plan.scaling):
            return False
        outcome, entry.memory = chosen_policy.step(plan.scaling, seen, entry.memory)
        if outcome is not None:
            entry.decisions = dict(outcome.decisions)
            entry.unsaved |= not outcome.observation.blind
            self._log.record(record_key(job.key), outcome, dry_run=plan.scaling.dry_run)
            for role, decision in outcome.decisions.items():
                self._metrics.decision(shown_key(job.key), role, decision)
        await self._states.save_if_due(job.key, entry, seen.folded.observation.now_s)
        return outcome is not None

    async def _seen(self, job: _ScalerJob, plan: ScalerPlan, targets: Mapping[str, FoundTarget]) -> Seen:
        """Return one look at the pods as the input of the policy. Raises Unreadable."""
        entry, spec, now_s = job.entry, plan.resource.spec, self._epoch()
        facts = {}
        for role, target in targets.items():
            starts = pod_facts.note_seen(entry.starts.get(role, Starts()), target.pods, now_s)
            entry.starts[role] = pod_facts.note_starts(starts, target.pods, now_s)
            facts[role] = pod_facts.facts(target.pods, target.replicas, now_s, entry.starts[role])
        asked = [Asked(targets[role].pods, plan.port(role), spec.metrics.path) for role in ROLES]
        polled = plan.prometheus is not None
        if plan.metrics is not None:
            first, second = await self._reports.of_engines(job.key, asked, plan.metrics, plan.prometheus, now_s)
            look = EngineLook(
                now_s, first, second, facts[PREFILL], facts[DECODE],
                spec.objectives.ttft_seconds.p99, spec.objectives.tpot_seconds.p99,
            )  # fmt: skip
            memory = self._engines.get(entry.uid, EngineMemory())
            seen, self._engines[entry.uid] = observe_engines(look, memory, polled=polled)
            return seen
        labels = "" if spec.metrics.routers is None else spec.metrics.routers.as_selector()
        routers = await self._kube.list(POD, job.key[0], labels)
        asked.append(Asked(tuple(routers), plan.router_port, spec.metrics.path))
        prefill, decode, told = await self._reports.of_ours(job.key, asked, plan.prometheus, now_s)
        ours = Look(now_s, told, prefill, decode, facts[PREFILL], facts[DECODE])
        return observe(ours, entry.memory.counters, polled=polled)

    async def _carry_out(
        self, job: _ScalerJob, found: ScalerFindings, targets: Mapping[str, FoundTarget]
    ) -> tuple[ScalerFindings, list[Note]]:
        """Set the targets to what was decided. Raises Unscalable if a right is missing."""
        notes = []
        for role, pool in found.pools.items():
            decision, target = pool.decision, targets[role]
            if decision is None or decision.current != target.replicas or decision.to == decision.current:
                continue
            try:
                await self._kube.set_scale(target.resource, target.scale, decision.to)
            except Conflict as error:
                log.info("DisaggScaler %s/%s: %s", *job.key, error)  # the next tick decides again
                continue
            except Forbidden as error:
                words = f"{target.ref}: {error}; the chart's value scaler.targets grants the right"
                raise Unscalable(RIGHT_MISSING, words) from None
            note = scaled_note(role, decision)
            notes.append(note)
            direction = "up" if note.reason == "ScaledUp" else "down"
            self._metrics.scaled.labels(*shown_key(job.key), role, direction).inc()
        return found, notes

    async def _tell(self, job: _ScalerJob, found: ScalerFindings, notes: list[Note]) -> None:
        """Write the status if it has changed, and send the Events."""
        before = job.resource.get("status") or {}
        generation = int(job.resource["metadata"].get("generation", 0))
        status = scaler_status(found, before, generation, self._wall())
        await self._recorder.send(job.resource, [*notes, *scaler_news(before, status)])
        if status == {name: before[name] for name in _KEPT_STATUS if name in before}:
            return
        meta = {"name": job.key[1], "namespace": job.key[0]}
        head = {"apiVersion": DISAGG_SCALER.api_version, "kind": DISAGG_SCALER.kind, "metadata": meta}
        await self._kube.apply_status({**head, "status": status})


def _key(obj: Obj) -> Key:
    return str(namespace_of(obj)), name_of(obj)


__all__ = ["ScalerLoop", "record_key", "shown_key"]
