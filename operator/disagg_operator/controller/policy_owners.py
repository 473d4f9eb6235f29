"""PURE: The pods that own the NetworkPolicies of a deployment, beside the deployment itself.

The garbage collector deletes an object when its last owner is gone. A resource that is deleted is
gone at once, and its pods drain for minutes: in a namespace that denies all other traffic, they
need their policies until the last one has ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from disagg_operator.kube.pods import epoch_s, is_terminating, pool_of
from disagg_operator.kube.resources import POD, labels_of, name_of, uid_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, ROUTER
from disagg_wire.roles import DECODE, ROLES

# The more owners, the larger the object.
MOST_PODS = 100


def new_owners(policy: Obj, pods: Sequence[Obj]) -> list[Obj] | None:
    """Return all owner references that a NetworkPolicy should have, or None if it has them.

    `pods` are those of the deployment. If it has more than may be owners, these are the ones that
    may drain longest: the policy must not go while they do. A pod that is an owner stays one until
    it is gone, so that references change only when a pod comes.
    """
    references = policy["metadata"].get("ownerReferences") or []
    here = {uid_of(pod) for pod in pods}
    kept = [reference for reference in references if reference.get("kind") != POD.kind or reference.get("uid") in here]
    known = {reference.get("uid") for reference in kept}
    room = MOST_PODS - sum(reference.get("kind") == POD.kind for reference in kept)
    lacking = [
        pod for pod in pods if uid_of(pod) not in known and not is_terminating(pod) and _is_subject_to(pod, policy)
    ]
    added = sorted(lacking, key=_ends_last)[: max(0, room)]
    return [*kept, *map(_owner, added)] if added else None


def _ends_last(pod: Obj) -> tuple[float, bool, float, str]:
    """Return the place of a pod among those of which only some can be owners.

    Streams end in decode, so prefill's workers have nothing left sooner. In a rollout, the pods
    that were made last are those that stay.
    """
    spec = pod.get("spec") or {}
    grace_s = float(spec.get("terminationGracePeriodSeconds") or 0)
    made_s = epoch_s(pod["metadata"].get("creationTimestamp"))
    return -grace_s, pool_of(pod) != DECODE, 0.0 if math.isnan(made_s) else -made_s, name_of(pod)


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
