"""Lets the NetworkPolicies of a resource outlive it until its pods have drained."""

from __future__ import annotations

import logging

from disagg_operator.controller.one_pass import Pass
from disagg_operator.controller.policy_owners import missing_owners
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Denied, Invalid
from disagg_operator.kube.resources import NETWORK_POLICY, owned_by, uid_of

log = logging.getLogger(__name__)


async def keep_for_pods(kube: Kube, run: Pass, now_s: float) -> None:
    """Make the pods owners of the policies that govern them. Raises KubeError.

    What forbids that harms nothing that runs, and is tried again later.
    """
    ours = frozenset({uid_of(run.resource)})
    for key, policy in list(run.children.objects.items()):
        if key[0] != NETWORK_POLICY.kind or key in run.blocked or not owned_by(policy, ours):
            continue
        missing = missing_owners(policy, run.children.pods)
        if not missing:
            continue
        which, mark = (f"owners of {key[0]}", key[1]), ",".join(owner["uid"] for owner in missing)
        if wait_s := run.live.contests.wait_s(which, mark, now_s):
            run.waits_s.append(wait_s)
            continue
        run.live.contests.wrote(which, mark, now_s)
        meta = policy["metadata"]
        owners = [*meta["ownerReferences"], *missing]
        patch = {"ownerReferences": owners, "uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        try:
            found = await kube.merge(NETWORK_POLICY, run.key[0], key[1], {"metadata": patch})
        except (Denied, Invalid) as error:
            log.warning("%s/%s: %s", *run.key, error)
        else:
            run.children.objects[key] = found
