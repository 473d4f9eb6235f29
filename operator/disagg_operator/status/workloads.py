"""PURE: The observed state of a DisaggDeployment, computed from the objects in the cluster.

The functions read plain dicts and never fail because a field is missing: an object that was just
created has no status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from disagg_operator.kube.resources import labels_of
from disagg_operator.status.effectiveness import Verdict
from disagg_operator.status.kv_links import RouterView
from disagg_operator.status.pod_problems import Problem, refused, worst_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.problems import WorkerProblem


@dataclass(frozen=True, slots=True)
class Workload:
    """The observed state of a pool or of the router."""

    name: str
    desired: int
    """The number of pods that the Deployment should have."""
    current: int = 0
    """The number of pods that exist."""
    ready: int = 0
    """The number of ready pods."""
    updated: int = 0
    """The number of pods of the present spec."""
    settled: bool = False
    """Whether the Deployment controller has seen the present spec and no older pod is left."""
    deadline_exceeded: bool = False
    """Whether the rollout exceeded its progress deadline."""
    problem: Problem | None = None
    """The worst problem among the pods."""

    @property
    def complete(self) -> bool:
        """Whether all desired pods are of the present spec and ready."""
        return self.settled and min(self.ready, self.updated) >= self.desired


@dataclass(frozen=True, slots=True)
class NetworkCheck:
    """The result of checking that the network requirements of the pods are met."""

    ok: bool = True
    reason: str = "NotRequired"
    message: str = "no network attachment is asked for"
    known: bool = True
    """Whether the check was possible."""
    tolerated: bool = False
    """Whether the deployment is ready nevertheless."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The whole observed state of a DisaggDeployment."""

    pools: Mapping[str, Workload]
    router: Workload
    network: NetworkCheck = field(default_factory=NetworkCheck)
    view: RouterView | None = None
    """The pairs as the routers report them; None if no ready router answered recently."""
    verdict: Verdict | None = None
    """Whether decode is spared what prefill has computed; None before there was traffic."""
    warnings: tuple[tuple[str, str], ...] = ()
    """(reason, message) of what is wrong with the pods although they serve."""


def workload(
    name: str,
    desired: int,
    deployment: Obj | None,
    pods: Iterable[Obj],
    told: Mapping[str, WorkerProblem] = MappingProxyType({}),
    hindered: Mapping[str, WorkerProblem] = MappingProxyType({}),
) -> Workload:
    """Combine the status of a Deployment with the problems of its pods.

    `told` is what workers that are not ready say about themselves, by the name of their pod;
    `hindered` is what the kubelet says of pods that it cannot start.
    """
    if deployment is None:
        return Workload(name, desired)
    status = deployment.get("status") or {}
    seen = int(status.get("observedGeneration") or 0) >= int(deployment["metadata"].get("generation") or 0)
    current = int(status.get("replicas") or 0)
    updated = int(status.get("updatedReplicas") or 0)
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    progressing = conditions.get("Progressing") or {}
    return Workload(
        name=name,
        desired=desired,
        current=current,
        ready=int(status.get("readyReplicas") or 0),
        updated=updated if seen else 0,
        settled=seen and current == updated == desired,
        deadline_exceeded=seen and progressing.get("reason") == "ProgressDeadlineExceeded",
        problem=worst_of(pods, told, hindered) or _refused(conditions),
    )


def pool(
    role: str,
    desired: int,
    deployments: Sequence[Obj],
    revision: str,
    pods: Iterable[Obj],
    told: Mapping[str, WorkerProblem] = MappingProxyType({}),
    hindered: Mapping[str, WorkerProblem] = MappingProxyType({}),
) -> Workload:
    """Combine the Deployments of a pool, of which that of `revision` is the present one.

    Whether a rollout makes progress is not told by one of them.
    """
    present = next((d for d in deployments if labels_of(d).get(LABEL_REVISION) == revision), None)
    found = workload(role, desired, present, pods, told, hindered)
    others = [workload(role, 0, d, ()) for d in deployments if d is not present]
    return replace(
        found,
        current=found.current + sum(w.current for w in others),
        ready=found.ready + sum(w.ready for w in others),
        settled=found.settled and not others,
        deadline_exceeded=False,
        problem=found.problem or next((w.problem for w in others if w.problem is not None), None),
    )


def _refused(conditions: Mapping[Any, Obj]) -> Problem | None:
    """Return the problem of pods that the API server rejects."""
    failure = conditions.get("ReplicaFailure") or {}
    return refused(str(failure.get("message", ""))) if failure.get("status") == "True" else None
