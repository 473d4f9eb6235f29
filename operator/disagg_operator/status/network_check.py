"""PURE: The condition NetworkReady: whether each pool has nodes, attachments and RDMA devices.

What workers find counts more than what the configuration suggests: once workers of every pool say
that they can use their devices, the chain of plugins must be right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from disagg_operator.kube.resources import name_of
from disagg_operator.status import attachment_check, node_fit
from disagg_operator.status.attachment_check import Attached, Flaw
from disagg_operator.status.kv_links import RouterView
from disagg_operator.status.workloads import NetworkCheck
from disagg_operator.vocabulary import Obj
from disagg_wire.engines import PROVED, RDMA, TCP
from disagg_wire.fabric import FABRIC_REASONS, RAILS_INCOMPLETE
from disagg_wire.problems import WorkerProblem
from disagg_wire.roles import BOTH

Where = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PoolNeeds:
    """What the workers of a pool need of the cluster, as their template says it."""

    links: tuple[Attached, ...]
    devices: Mapping[str, int]
    """The extended resources of their network."""
    others: Mapping[str, int]
    """Their other extended resources, such as GPUs."""
    pod: Obj
    """The spec of the pod."""
    claims: tuple[str, ...] = ()
    """The ResourceClaimTemplates of its devices."""


@dataclass(frozen=True, slots=True)
class Findings:
    """The known facts about the network of a deployment."""

    namespace: str
    pools: Mapping[str, PoolNeeds]
    """By role."""
    multus: bool
    """Whether the cluster has the NetworkAttachmentDefinition API."""
    nads: Mapping[Where, Obj | None] = field(default_factory=dict)
    """The NetworkAttachmentDefinitions that pools refer to; None stands for one that is missing."""
    hidden: frozenset[Where] = frozenset()
    """Those that the operator may not read."""
    nodes: Sequence[Obj] | None = None
    """All nodes, or None if they can't be listed."""
    pods: Sequence[Obj] = ()
    """The pods of the workers."""
    declared: str = "auto"
    """The transport of the spec."""
    tolerant: bool = False
    """Whether another transport than the declared one is tolerated."""
    view: RouterView | None = None
    told: Mapping[str, WorkerProblem] = field(default_factory=dict)
    """What workers that are not ready say of themselves, by pod."""


def needs_of(template: Obj, namespace: str, resources: frozenset[str]) -> PoolNeeds:
    """Return the needs of a template, whose network asks for these extended resources."""
    spec = template.get("spec") or {}
    devices = node_fit.devices_of(spec)
    return PoolNeeds(
        links=attachment_check.attached_of(template, namespace),
        devices={name: count for name, count in devices.items() if name in resources},
        others={name: count for name, count in devices.items() if name not in resources},
        pod=spec,
        claims=tuple(
            str(claim["resourceClaimTemplateName"])
            for claim in spec.get("resourceClaims") or []
            if claim.get("resourceClaimTemplateName")
        ),
    )


def network_check(found: Findings) -> NetworkCheck:
    """Return how the network of a deployment stands, with the first thing that it lacks."""
    if not any(pool.links or pool.devices or pool.claims for pool in found.pools.values()):
        return NetworkCheck()
    if (early := _attachments(found)) is not None:
        return early
    counts: list[str] = []
    if any(pool.devices for pool in found.pools.values()):
        if found.nodes is None and found.declared == RDMA:
            return NetworkCheck(False, "NodesNotReadable", "the operator may not list nodes", known=False)
        for role, pool in found.pools.items() if found.nodes is not None else ():
            fit = _fitting(role, pool, found.nodes or ())
            if isinstance(fit, NetworkCheck):
                return fit
            counts.append(f"{fit} node{'' if fit == 1 else 's'} for {role}")
    asked = next((pool.devices for pool in found.pools.values() if pool.devices), {})
    words = ", ".join(counts) + (f" ({', '.join(f'{n} {name}' for name, n in asked.items())})" if counts else "")
    for flaw in _flaws(found):
        told = flaw.message + (f"; {words}" if words else "")
        return NetworkCheck(False, flaw.reason, told, tolerated=found.tolerant)
    for flaw in _of_workers(found) if found.declared != TCP else ():
        return NetworkCheck(False, flaw.reason, flaw.message, tolerated=found.tolerant)
    if not words:
        shown = sorted({"/".join(link.where) for pool in found.pools.values() for link in pool.links})
        claims = sorted({name for pool in found.pools.values() for name in pool.claims})
        words = f"network attachment {', '.join(shown)} exists" if shown else f"devices by {', '.join(claims)}"
    if found.declared == RDMA and _unproven(found.view):
        return NetworkCheck(True, "TransportUnproven", f"{words}; no counter shows yet that KV goes over rdma")
    return NetworkCheck(True, "NetworkFound", words)


def _unproven(view: RouterView | None) -> bool:
    """Return whether pairs that move KV over RDMA know it from their configuration alone."""
    if view is None or not view.healthy:
        return False
    return RDMA in view.transports.split(",") and view.evidence != PROVED


def _attachments(found: Findings) -> NetworkCheck | None:
    """Return what keeps the attachments from being used at all."""
    wheres = list(dict.fromkeys(link.where for pool in found.pools.values() for link in pool.links))
    if wheres and not found.multus:
        return NetworkCheck(False, "MultusAbsent", "the cluster has no NetworkAttachmentDefinition API: install Multus")
    for where in wheres:
        if where in found.hidden:
            words = f"the operator may not read {'/'.join(where)}"
            return NetworkCheck(False, "AttachmentNotReadable", words, known=False)
        if found.nads.get(where) is None:
            words = f"NetworkAttachmentDefinition {'/'.join(where)} does not exist"
            return NetworkCheck(False, "NetworkAttachmentMissing", words)
    for flaw in attachment_check.unreadable(_there(found)):
        return NetworkCheck(False, flaw.reason, flaw.message)
    return None


def _there(found: Findings) -> dict[Where, Obj]:
    return {where: nad for where, nad in found.nads.items() if nad is not None}


def _fitting(role: str, pool: PoolNeeds, nodes: Sequence[Obj]) -> int | NetworkCheck:
    """Return how many nodes can run a worker of a pool, or why none can."""
    for resource, wanted in pool.devices.items():
        most = max((node_fit.allocatable(node, resource) for node in nodes), default=0)
        if not most:
            return NetworkCheck(False, "RdmaResourceMissing", f"no node has {resource} to allocate")
        if most < wanted:
            words = f"a worker asks for {wanted} {resource}, and no node has more than {most}"
            return NetworkCheck(False, "RdmaResourceMissing", words)
    wanted_of = {**pool.devices, **pool.others}
    in_the_way = [node_fit.hindrance(node, pool.pod, wanted_of) for node in nodes]
    fit = sum(not words for words in in_the_way)
    if fit or not pool.devices:
        return fit
    shown = ", ".join(f"{n} with {words}" for words, n in Counter(in_the_way).most_common(4))
    return NetworkCheck(False, "NoNodeFits", f"none of {len(nodes)} nodes can run a worker of {role}: {shown}")


def _flaws(found: Findings) -> Iterator[Flaw]:
    """Yield what does not fit together, unless workers show that it does."""
    if not _all_well(found):
        for pool in found.pools.values():
            for flaw in attachment_check.mismatched(_there(found), pool.links, pool.devices):
                if found.declared != TCP or flaw.reason == attachment_check.RESOURCE_MISMATCH:
                    yield flaw
    if words := attachment_check.incomplete(found.pods, found.namespace):
        yield Flaw(RAILS_INCOMPLETE, words)


def _all_well(found: Findings) -> bool:
    """Return whether workers of every pool can use their devices, as they say."""
    view = found.view
    if view is None:
        return False
    changed = max(map(attachment_check.changed_at, _there(found).values()), default="")
    # What they were attached to was another configuration.
    stale = {name_of(pod) for pod in found.pods if (attachment_check.attached_at(pod) or changed) < changed}
    if view.transports == RDMA and view.evidence == PROVED and not stale:
        return True
    well = [w for w in view.workers if w.devices and w.problem is None and w.pod not in stale]
    return all(
        any(w.role in (role, BOTH) and w.devices >= len(pool.links) for w in well) for role, pool in found.pools.items()
    )


def _of_workers(found: Findings) -> Iterator[Flaw]:
    """Yield the worst of what workers say of their devices and limits, the commonest first."""
    said = {pod: problem for pod, problem in found.told.items() if problem.reason in FABRIC_REASONS}
    said |= {} if found.view is None else {w.pod: w.problem for w in found.view.workers if w.problem is not None}
    if not said:
        return
    reasons = Counter(problem.reason for problem in said.values())
    first = min(FABRIC_REASONS, key=lambda reason: -reasons[reason])
    pods = sorted(pod for pod, problem in said.items() if problem.reason == first)
    more = f" (and {len(pods) - 1} more)" if len(pods) > 1 else ""
    yield Flaw(first, f"{pods[0]}{more}: {said[pods[0]].message}")
