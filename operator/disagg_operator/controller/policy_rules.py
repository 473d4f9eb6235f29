"""PURE: The NetworkPolicies while a deployment rolls: old workers keep what they need.

The ports of an engine, and whether its workers reach the web, follow from the spec. What a policy
does not name is forbidden, so until the last worker of an earlier revision is gone, the policies
allow what any of the revisions needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, read
from disagg_operator.desired import Facts, render
from disagg_operator.kube.pods import pool_of
from disagg_operator.kube.resources import NETWORK_POLICY, labels_of, name_of
from disagg_operator.rollout import looking, revisions
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.roles import ROLES

_DIRECTIONS = ("ingress", "egress")


def widened(rendered: list[Obj], served: Obj, objects: Sequence[Obj], pods: Sequence[Obj], facts: Facts) -> list[Obj]:
    """Return the rendered objects with the policies widened for the earlier revisions that live.

    `served` is the resource; `objects` are the live ones.
    """
    out = list(rendered)
    for spec in _specs_of_others(rendered, objects, pods):
        if (earlier := _earlier(served, spec)) is None:
            continue
        theirs = {name_of(obj): obj for obj in _policies(render(earlier, replace(facts, pool_uids={})))}
        out = [_both(obj, theirs[name_of(obj)]) if name_of(obj) in theirs and _is_policy(obj) else obj for obj in out]
    return out


def _is_policy(obj: Obj) -> bool:
    return bool(obj["kind"] == NETWORK_POLICY.kind)


def _policies(objects: Iterable[Obj]) -> list[Obj]:
    return [obj for obj in objects if _is_policy(obj)]


def _specs_of_others(rendered: list[Obj], objects: Sequence[Obj], pods: Sequence[Obj]) -> list[Obj]:
    """Return the specs of the other revisions that still have workers, the newest first."""
    mine = looking.workloads(rendered).keys()
    here = {*looking.workloads(objects), *((pool_of(pod), labels_of(pod).get(LABEL_REVISION, "")) for pod in pods)}
    found = reversed(revisions.known_revisions(objects))
    return [dict(r.spec) for r in found if any((role, r.of(role)) in here - mine for role in ROLES)]


def _earlier(served: Obj, spec: Obj) -> DisaggDeployment | None:
    """Return the resource as it was in a revision; None if it cannot be read any more."""
    now = served["spec"]
    part = revisions.pods_part(now)
    rest = {key: value for key, value in now.items() if key not in part}
    sizes = {role: {k: v for k, v in (now.get(role) or {}).items() if k not in part[role]} for role in ROLES}
    pools = {role: {**sizes[role], **(spec.get(role) or {})} for role in ROLES}
    try:
        return read({**served, "spec": {**rest, **spec, **pools}})
    except InvalidResource:
        return None


def _both(one: Obj, other: Obj) -> Obj:
    """Return a policy that allows what either of two allows."""
    spec = dict(one["spec"])
    for direction in _DIRECTIONS:
        rules = other["spec"].get(direction) or []
        if direction in spec:
            spec[direction] = [*spec[direction], *(rule for rule in rules if rule not in spec[direction])]
    return {**one, "spec": spec}
