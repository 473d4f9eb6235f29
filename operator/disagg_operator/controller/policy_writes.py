"""Lets the NetworkPolicies of a resource outlive it until its pods have drained."""

from __future__ import annotations

import logging

from disagg_operator.controller.children import ChildKey
from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.policy_owners import new_owners
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, Denied, Invalid, NotFound
from disagg_operator.kube.resources import NETWORK_POLICY, owned_by, uid_of
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)


# Others write to policies, too: the garbage collector takes the pods that have gone from them.
_MOST_READS = 3
_AGAIN_S = 5.0


async def keep_for_pods(kube: Kube, run: Pass, now_s: float) -> None:
    """Make the pods owners of the policies that govern them. Raises KubeError.

    What forbids that harms nothing that runs, and is tried again later.
    """
    ours = frozenset({uid_of(run.resource)})
    for key, policy in list(run.children.objects.items()):
        if key[0] != NETWORK_POLICY.kind or key in run.blocked or not owned_by(policy, ours):
            continue
        owners = new_owners(policy, run.children.pods)
        if owners is None:
            continue
        which, mark = (f"owners of {key[0]}", key[1]), ",".join(owner["uid"] for owner in owners)
        if wait_s := run.live.contests.wait_s(which, mark, now_s):
            run.waits_s.append(wait_s)
            continue
        run.view.certain()  # or the repeated run would find that it has just been written
        run.live.contests.wrote(which, mark, now_s)
        await _own(kube, run, key, ours)


async def _own(kube: Kube, run: Pass, key: ChildKey, ours: frozenset[str]) -> None:
    """Write the owners of a policy; of one that others have changed meanwhile, to what it is now.

    One that changes all the time is left to a later run. Raises KubeError.
    """
    policy: Obj | None = run.children.objects[key]
    for _ in range(_MOST_READS):
        owners = None if policy is None or not owned_by(policy, ours) else new_owners(policy, run.children.pods)
        if policy is None or owners is None:
            return  # it was deleted, is somebody else's, or has all owners by now
        meta = policy["metadata"]
        patch = {"ownerReferences": owners, "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        try:
            run.children.objects[key] = await kube.merge(NETWORK_POLICY, run.key[0], key[1], {"metadata": patch})
        except (Conflict, NotFound):
            policy = await kube.get(NETWORK_POLICY, run.key[0], key[1])
        except (Denied, Invalid) as error:
            log.warning("%s/%s: %s", *run.key, error)
            return
        else:
            return
    log.info("%s/%s: %s %s changes all the time: its owners are written later", *run.key, *key)
    run.waits_s.append(_AGAIN_S)
