"""PURE: The status of a DisaggDeployment, computed from its spec and from what is observed.

Every condition is a function of its inputs alone. The same inputs give the same status, so that a
status equal to the stored one need not be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from disagg_operator.rollout.telling import CANARY_FAILED, CANARY_INCONCLUSIVE, PAUSED, ROLLED_BACK, STALLED
from disagg_operator.rollout.values import RolloutView
from disagg_operator.status.effectiveness import EFFECTIVE_SHARE
from disagg_operator.status.kv_links import fallback_of, mismatch_of, pairs_status, words_of
from disagg_operator.status.pod_problems import INSUFFICIENT_CAPACITY, PODS_REFUSED
from disagg_operator.status.scaling_verdicts import OBJECTIVES_FEASIBLE, objectives_feasible, scaling_active
from disagg_operator.status.stamping import FALSE, TRUE, UNKNOWN, Condition, conditions_of, stamped
from disagg_operator.status.workloads import NetworkCheck, Observed, Workload
from disagg_operator.status.zero_state import SCALED_TO_ZERO, SERVED_NEXT
from disagg_operator.vocabulary import MOST_OF_A_REQUEST, UPDATE_RUNTIME, Obj
from disagg_wire.roles import PREFILL

RUNTIME_UPDATE_AVAILABLE = "RuntimeUpdateAvailable"


@dataclass(frozen=True, slots=True)
class PoolIntent:
    """The desired state of one pool."""

    name: str
    """The role of the pool: `prefill` or `decode`."""
    desired: int
    """The number of replicas that the pool should have."""
    owner: str
    """The writer of that number: the autoscaler, the spec, or another writer of /scale."""
    selector: str
    """The label selector of the pool's pods, as text."""
    autoscaled: bool = False
    """Whether the operator scales the pool."""
    scaling_blind: bool = False
    """Whether the replicas are held because metrics are missing."""
    unmet: str | None = None
    """Why the pool's objective cannot be met, and what can be; empty if it can, None if unknown."""
    scaling: Mapping[str, Any] = field(default_factory=dict)
    """What status says of its scaling: the last decision, and how it stands now."""


@dataclass(frozen=True, slots=True)
class Intent:
    """The parts of the desired state that status depends on."""

    generation: int
    """The generation of the spec."""
    pools: tuple[PoolIntent, ...]
    url: str
    """The URL of the OpenAI API within the cluster."""
    model: str
    """The name under which the model is served."""
    revision: str
    """The revision of the pods that the spec renders."""
    suspended: bool = False
    transport: str = "auto"
    """The transport of KV that the spec requests."""
    fallback: str = "Warn"
    """The consequence of another transport than the requested one: `Warn` or `Forbid`."""
    interface: str | None = None
    """The network interface that KV must use, if a network is attached."""
    declared: tuple[Condition, ...] = ()
    """The conditions that the spec alone decides (`declared_conditions`)."""
    trouble: tuple[str, str] | None = None
    """The reason and the message of a failure to read Prometheus."""
    rollout: RolloutView | None = None
    """The rollout of the workers; None if nobody plans it."""
    refusal: tuple[str, str] | None = None
    """The reason and the message if the spec is refused, and the last accepted one is served."""
    warnings: tuple[tuple[str, str], ...] = ()
    """The reason and the message of each thing that is wrong with the spec that is served."""
    zero: tuple[str, str] | None = None
    """Why both pools are scaled to zero, as a reason and a message; None if they are not."""
    awake: tuple[str, str] | None = None
    """Why they are not although nobody asks, as a reason and a message; or None."""
    runtime_update: str = ""
    """What images and renderer of the operator's release would change, if they were used."""
    runtime_request: str = ""
    """The last request for them that was carried out."""


def build(intent: Intent, observed: Observed, previous: Mapping[str, object], now: str) -> Obj:
    """Return the whole status. `previous` is the stored status, `now` a time in RFC 3339."""
    pools = [_pool_status(p, observed.pools[p.name]) for p in intent.pools]
    status: Obj = {
        "observedGeneration": intent.generation,
        "conditions": stamped(conditions(intent, observed, previous), previous, intent.generation, now),
        "url": intent.url,
        "model": intent.model,
        "revision": _revision(intent, observed, previous),
        "pools": pools,
    }
    for pool in pools:
        status[str(pool["name"])] = f"{pool['ready']}/{pool['desired']}"
    if observed.view is not None:
        status["pairs"] = pairs_status(observed.view)
    if intent.runtime_request:
        status["runtimeRequest"] = intent.runtime_request[:MOST_OF_A_REQUEST]
    return status


def refused(generation: int, reason: str, message: str, previous: Mapping[str, object], now: str) -> Obj:
    """Return the status of a resource that is not accepted.

    Its running pods are left alone, so the rest of the status stays as it was.
    """
    found = [
        Condition("Accepted", FALSE, reason, message),
        Condition("Ready", FALSE, reason, message),
    ]
    kept = [c for c in conditions_of(previous) if c.get("type") not in ("Accepted", "Ready", "Reconciled")]
    stamped_ = stamped(found, previous, generation, now)
    conditions_ = [stamped_[0], *kept, stamped_[1]]
    return {**previous, "observedGeneration": generation, "conditions": conditions_}


def conditions(
    intent: Intent, observed: Observed, previous: Mapping[str, object] = MappingProxyType({})
) -> list[Condition]:
    """Return all conditions: causes before effects, `Ready` last.

    `previous` is the stored status.
    """
    causes = [
        _accepted(intent),
        network := _network(observed.network),
        *(_pool_ready(observed.pools[p.name], intent) for p in intent.pools),
        _router_ready(observed.router),
        _kv_transfer(intent, observed),
    ]
    available = _available(intent, observed)
    progressing = _progressing(observed, intent.rollout)
    scaling = _scaling(intent)
    effective = _effective(intent, observed, previous)
    told = [*causes, *scaling, *([effective] if effective.status == FALSE else [])]
    return [
        *causes,
        available,
        *([] if intent.zero is None else [Condition(SCALED_TO_ZERO, TRUE, *intent.zero)]),
        *([] if intent.awake is None else [Condition(SCALED_TO_ZERO, FALSE, *intent.awake)]),
        progressing,
        *([Condition("Stalled", TRUE, progressing.reason, progressing.message)] if progressing.status == FALSE else []),
        *scaling,
        *_feasible(intent),
        effective,
        *intent.declared,
        *_warning((*intent.warnings, *observed.warnings)),
        _runtime(intent.runtime_update),
        _degraded(available, told, intent, observed),
        _ready([c for c in (*causes, available) if c is not network or not observed.network.tolerated], progressing),
    ]


def _accepted(intent: Intent) -> Condition:
    if intent.refusal is None:
        return Condition("Accepted", TRUE, "Valid", "the resource is valid")
    return Condition("Accepted", FALSE, intent.refusal[0], f"{intent.refusal[1]}; what was accepted last is served")


def _warning(warnings: Sequence[tuple[str, str]]) -> list[Condition]:
    """Return the Warning condition; none for a resource with which nothing is wrong."""
    message = "; ".join(message for _, message in warnings)
    return [Condition("Warning", TRUE, warnings[0][0], message)] if warnings else []


def _network(network: NetworkCheck) -> Condition:
    value = TRUE if network.ok else FALSE if network.known else UNKNOWN
    return Condition("NetworkReady", value, network.reason, network.message)


def _pool_ready(pool: Workload, intent: Intent) -> Condition:
    kind = {"prefill": "PrefillReady", "decode": "DecodeReady"}[pool.name]
    if intent.suspended:
        return Condition(kind, FALSE, "Suspended", "spec.suspend is set")
    if intent.zero is not None:
        return Condition(kind, TRUE, SCALED_TO_ZERO, "no worker is wanted while nobody asks")
    counts = f"{pool.ready} of {pool.desired} pods are ready, {pool.updated} of the present revision"
    # The pods of the last revision may be ready while that of the present one fails. A pod that
    # only waits for a node says nothing about the revision.
    fails = pool.problem is not None and pool.problem.reason != INSUFFICIENT_CAPACITY
    if min(pool.ready, pool.updated) >= pool.desired and not (fails and not pool.settled):
        return Condition(kind, TRUE, "PodsReady", counts)
    return _unready(kind, pool, counts)


def _router_ready(router: Workload) -> Condition:
    counts = f"{router.ready} of {router.desired} routers are ready"
    if router.ready >= 1:
        return Condition("RouterReady", TRUE, "PodsReady", counts)
    return _unready("RouterReady", router, counts)


def _unready(kind: str, workload: Workload, counts: str) -> Condition:
    if (problem := workload.problem) is not None:
        # The scheduler and the API server speak of the pod, and not of a field.
        field = f" (spec.{workload.name})" if problem.reason in (INSUFFICIENT_CAPACITY, PODS_REFUSED) else ""
        return Condition(kind, FALSE, problem.reason, f"{counts}; {problem.message}{field}")
    return Condition(kind, FALSE, "PodsPending", counts)


def _kv_transfer(intent: Intent, observed: Observed) -> Condition:
    kind = "KVTransferReady"
    view = observed.view
    if intent.suspended:
        return Condition(kind, FALSE, "Suspended", "spec.suspend is set")
    if view is None:
        if observed.router.ready == 0:
            return Condition(kind, FALSE, "RouterNotReady", "no router is there to test the pairs")
        return Condition(kind, UNKNOWN, "RouterUnreachable", "no router answered the operator lately")
    counts = f"{view.healthy} of {view.expected} pairs moved a KV block"
    if intent.zero is not None:
        return Condition(kind, UNKNOWN, SCALED_TO_ZERO, "there are no pairs to test")
    if view.expected == 0:
        if (mismatch := mismatch_of(view)) is not None:
            return Condition(kind, FALSE, *mismatch)
        return Condition(kind, FALSE, "NoPairs", "no prefill worker and decode worker of one revision are ready")
    if view.healthy == 0:
        return Condition(kind, FALSE, "HandshakeFailed", counts)
    counts = f"{counts} {words_of(view)}"
    wrong = fallback_of(view, intent.transport, intent.interface)
    if wrong is not None and intent.fallback == "Forbid":
        return Condition(kind, FALSE, "TransportFallback", wrong)
    if view.healthy < view.expected:
        return Condition(kind, FALSE, "HandshakeFailed", counts)
    return Condition(kind, TRUE, "PairsHealthy", counts)


def _available(intent: Intent, observed: Observed) -> Condition:
    kind = "Available"
    if intent.suspended:
        return Condition(kind, FALSE, "Suspended", "spec.suspend is set")
    if observed.router.ready == 0:
        return Condition(kind, FALSE, "RouterNotReady", "no router is ready")
    if observed.view is None:
        return Condition(kind, UNKNOWN, "RouterUnreachable", "no router answered the operator lately")
    if intent.zero is not None:
        return Condition(kind, TRUE, SCALED_TO_ZERO, SERVED_NEXT)
    if observed.view.healthy == 0:
        return Condition(kind, FALSE, "NoHealthyPair", "no prefill worker can hand over to a decode worker")
    return Condition(kind, TRUE, "PairsHealthy", "a request can be served end to end")


_ROLLOUT_VALUES = {
    **dict.fromkeys((STALLED, ROLLED_BACK, CANARY_FAILED), FALSE),
    **dict.fromkeys((PAUSED, CANARY_INCONCLUSIVE), UNKNOWN),
}


def _progressing(observed: Observed, rollout: RolloutView | None) -> Condition:
    if rollout is not None and not rollout.complete:
        value = _ROLLOUT_VALUES.get(rollout.reason, TRUE)
        return Condition("Progressing", value, rollout.reason, rollout.message)
    workloads = [*observed.pools.values(), observed.router]
    late = [w.name for w in workloads if w.deadline_exceeded and not w.complete]
    if late:
        return Condition("Progressing", FALSE, "ProgressDeadlineExceeded", f"no progress in {', '.join(late)}")
    moving = [w.name for w in workloads if not w.complete]
    if moving:
        return Condition("Progressing", TRUE, "RollingOut", f"waiting for {', '.join(moving)}")
    return Condition("Progressing", TRUE, "RolloutComplete", "all pods are of the present revision and ready")


def _runtime(update: str) -> Condition:
    kind = "RuntimeUpToDate"
    if not update:
        return Condition(kind, TRUE, "UpToDate", "images and renderer are those of the operator's release")
    ways = f"`disagg rollout restart --runtime` or a new value of the annotation {UPDATE_RUNTIME}"
    message = f"{update}; {ways} asks for it, and replaces the pods"
    return Condition(kind, FALSE, RUNTIME_UPDATE_AVAILABLE, message)


def _scaling(intent: Intent) -> list[Condition]:
    """Return the ScalingActive condition; none for a deployment that the operator doesn't scale."""
    scaled = [p for p in intent.pools if p.autoscaled]
    blind = [p.name for p in scaled if p.scaling_blind]
    return [Condition("ScalingActive", *scaling_active(intent.suspended, blind, intent.trouble))] if scaled else []


def _feasible(intent: Intent) -> list[Condition]:
    unmet = {p.name: p.unmet for p in intent.pools if p.autoscaled and not intent.suspended}
    return [Condition(OBJECTIVES_FEASIBLE, *found) for found in (objectives_feasible(unmet),) if found is not None]


def _effective(intent: Intent, observed: Observed, previous: Mapping[str, object]) -> Condition:
    """Return whether the prompts that prefill computes are not computed again by decode.

    Without new data it stays as it was, also after a restart of the operator.
    """
    kind = "DisaggregationEffective"
    if intent.zero is None and any(p.name == PREFILL and p.desired == 0 for p in intent.pools):
        return Condition(kind, UNKNOWN, "NoPrefillWorkers", "without prefill workers decode computes all prompts")
    verdict = observed.verdict
    if verdict is None:
        for old in conditions_of(previous):
            if old.get("type") == kind and old.get("status") in (TRUE, FALSE):
                return Condition(kind, str(old["status"]), str(old.get("reason")), str(old.get("message")))
        return Condition(kind, UNKNOWN, "NoData", "no decode worker has told yet where its prompt tokens came from")
    least = f"{100 * EFFECTIVE_SHARE:g} %"
    if verdict.effective:
        return Condition(kind, TRUE, "PromptsTransferred", f"decode was spared at least {least} of the prompt tokens")
    message = f"decode was spared {verdict.percent} % of the prompt tokens, not {least}: it computed the others itself"
    return Condition(kind, FALSE, "PrefillRepeated", message)


def _degraded(available: Condition, others: Sequence[Condition], intent: Intent, observed: Observed) -> Condition:
    kind = "Degraded"
    if available.status != TRUE:
        return Condition(kind, FALSE, "NotServing", "see Available")
    view = observed.view
    if view is not None and (wrong := fallback_of(view, intent.transport, intent.interface)) is not None:
        return Condition(kind, TRUE, "TransportFallback", wrong)
    for other in others:
        if other.status != TRUE and other.reason != SCALED_TO_ZERO:
            return Condition(kind, TRUE, other.reason, f"{other.type}: {other.message}")
    return Condition(kind, FALSE, "AsSpecified", "serving as specified")


def _ready(causes: Sequence[Condition], progressing: Condition) -> Condition:
    for cause in causes:
        if cause.status != TRUE and cause.reason != SCALED_TO_ZERO:
            return Condition("Ready", FALSE, cause.reason, f"{cause.type}: {cause.message}")
    if progressing.reason != "RolloutComplete":
        return Condition("Ready", FALSE, progressing.reason, f"Progressing: {progressing.message}")
    rests = any(cause.reason == SCALED_TO_ZERO for cause in causes)
    return Condition("Ready", TRUE, *((SCALED_TO_ZERO, SERVED_NEXT) if rests else ("Ready", "serving as specified")))


def _pool_status(intent: PoolIntent, seen: Workload) -> Obj:
    return {
        "name": intent.name,
        "desired": intent.desired,
        "current": seen.current,
        "ready": seen.ready,
        "updated": seen.updated,
        "selector": intent.selector,
        "replicaOwner": intent.owner,
        **intent.scaling,
    }


def _revision(intent: Intent, observed: Observed, previous: Mapping[str, object]) -> dict[str, str]:
    """Return the current and the update revision of a deployment.

    `update` is the revision being rolled out. It becomes `current` once all pods of every pool are
    of that revision.
    """
    stored = previous.get("revision")
    before = str(stored.get("current", "")) if isinstance(stored, Mapping) else ""
    complete = all(pool.complete for pool in observed.pools.values())
    return {"current": intent.revision if complete or not before else before, "update": intent.revision}
