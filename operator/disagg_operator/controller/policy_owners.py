"""PURE: The pods that own the NetworkPolicies of a deployment, beside the deployment itself.

The garbage collector deletes an object when its last owner is gone. A resource that is deleted is
gone at once, and its pods drain for minutes: in a namespace that denies all other traffic, they
need their policies until the last one has ended.
"""

from __future__ import annotations

from collections.abc import Iterable

from disagg_operator.kube.pods import is_terminating, pool_of
from disagg_operator.kube.resources import POD, labels_of, name_of, uid_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, ROUTER
from disagg_wire.roles import ROLES

# The more owners, the larger the object. All pods begin to end at the same moment.
MOST_PODS = 100


def missing_owners(policy: Obj, pods: Iterable[Obj]) -> list[Obj]:
    """Return the owner references to pods that a NetworkPolicy lacks, the first pods by name."""
    references = policy["metadata"].get("ownerReferences") or []
    known = {reference.get("uid") for reference in references}
    room = MOST_PODS - sum(reference.get("kind") == POD.kind for reference in references)
    lacking = [
        pod for pod in pods if uid_of(pod) not in known and not is_terminating(pod) and _is_subject_to(pod, policy)
    ]
    return [_owner(pod) for pod in sorted(lacking, key=name_of)[: max(0, room)]]


def _is_subject_to(pod: Obj, policy: Obj) -> bool:
    if labels_of(policy).get(LABEL_COMPONENT) == ROUTER:
        return labels_of(pod).get(LABEL_COMPONENT) == ROUTER
    return pool_of(pod) in ROLES


def _owner(pod: Obj) -> Obj:
    """Return the reference to a pod, whose own deletion does not wait for the policy."""
    return {
        "apiVersion": POD.api_version,
        "kind": POD.kind,
        "name": name_of(pod),
        "uid": uid_of(pod),
        "blockOwnerDeletion": False,
    }
