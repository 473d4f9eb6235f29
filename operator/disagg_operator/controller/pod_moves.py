"""The last part of a role flip: a pod moves from one pool to the other without being deleted.

The worker has changed its role already. The ReplicaSet of its old pool releases the pod, and that
of the other pool adopts it. Each step waits until the Kubernetes controllers have observed the one
before; a run that is interrupted in between is repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.controller.decision_report import DELETION_COST
from disagg_operator.controller.rollout_step import RolloutStep
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Retry
from disagg_operator.kube.resources import POD, REPLICA_SET, labels_of, name_of, uid_of
from disagg_operator.rollout import looking
from disagg_operator.status.events import NORMAL, Note
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_POOL, LABEL_REVISION

HASH_LABEL = "pod-template-hash"
_LOOK_EVERY_S = 0.1
_LOOKS = 80
# The highest deletion cost: until the pod has moved, it is the last one to be deleted.
_KEEP = str(2**31 - 1)


def is_late(flip: Flip | None, objects: Iterable[Obj], step: RolloutStep | None) -> bool:
    """Return whether a rollout has begun since a worker was asked to change its role.

    The worker may be one of an old revision, and the pool that takes it may have a new one.
    """
    if flip is None or not flip.changed:
        return False
    return step is None or looking.workloads(objects).keys() != set(step.target.items())


async def move(kube: Kube, key: Key, flip: Flip, deployment: Obj) -> None:
    """Move a pod to the pool of its new role.

    `deployment` is the Deployment of that pool, as it was just applied with one more replica.
    Raises KubeError.
    """
    taker = await _until(lambda: _grown(kube, key, deployment), f"the ReplicaSet of {name_of(deployment)} to grow")
    patch = {
        "metadata": {
            "labels": {
                LABEL_COMPONENT: flip.taking,
                LABEL_POOL: flip.taking,
                LABEL_REVISION: labels_of(taker)[LABEL_REVISION],
                HASH_LABEL: labels_of(taker)[HASH_LABEL],
            },
            "annotations": {DELETION_COST: _KEEP},
        }
    }
    await kube.merge(POD, key[0], flip.pod, patch)
    await _until(lambda: _adopted(kube, key, flip.pod, uid_of(taker)), f"pod {flip.pod} to be taken over")


def moved(flip: Flip, took_s: float) -> Note:
    """Return the Event of a pod that has moved."""
    words = f"worker {flip.pod} went from {flip.giving} to {flip.taking} in {took_s:.1f} s"
    return Note(NORMAL, "RoleFlipped", f"{words}, without loading its weights again")


async def _grown(kube: Kube, key: Key, deployment: Obj) -> Obj | None:
    """Return the ReplicaSet of the Deployment's current revision once it wants as many replicas."""
    revision = labels_of(deployment)[LABEL_REVISION]
    for found in await kube.list(REPLICA_SET, key[0], f"{LABEL_DEPLOYMENT}={key[1]},{LABEL_REVISION}={revision}"):
        owners = {str(o.get("uid")) for o in found["metadata"].get("ownerReferences") or []}
        if uid_of(deployment) in owners and found["spec"].get("replicas") == deployment["spec"]["replicas"]:
            return found
    return None


async def _adopted(kube: Kube, key: Key, pod: str, owner_uid: str) -> Obj | None:
    found = await kube.get(POD, key[0], pod)
    if found is None:
        raise Retry(f"pod {pod} no longer exists")
    controllers = {str(o.get("uid")) for o in found["metadata"].get("ownerReferences") or [] if o.get("controller")}
    return found if controllers == {owner_uid} else None


async def _until(look: Callable[[], Awaitable[Obj | None]], what: str) -> Obj:
    """Call `look` until it returns an object. Raises Retry if that takes too long."""
    for _ in range(_LOOKS):
        if (found := await look()) is not None:
            return found
        await asyncio.sleep(_LOOK_EVERY_S)
    raise Retry(f"timed out waiting for {what}")
