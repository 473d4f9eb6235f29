"""The workers that a ReplicaSet deletes first when its workload shrinks: the least loaded ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from disagg_operator.controller import decision_report
from disagg_operator.controller.children import Children
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Conflict, Forbidden, Invalid, NotFound
from disagg_operator.kube.pods import pool_of
from disagg_operator.kube.resources import DEPLOYMENT, POD, labels_of, name_of
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_POOL, LABEL_REVISION
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)


async def mark_victims(kube: Kube, key: Key, children: Children, loads: Mapping[str, float], wanted: Obj) -> None:
    """Set the deletion costs of a workload's pods before it shrinks to the size of `wanted`.

    `loads` holds the requests of each pod. Raises KubeError.
    """
    now, labels = children.get(DEPLOYMENT.kind, name_of(wanted)), labels_of(wanted)
    role = labels.get(LABEL_POOL, "")
    if now is None or role not in ROLES or (now["spec"].get("replicas") or 0) <= wanted["spec"]["replicas"]:
        return
    ours = (None, labels.get(LABEL_REVISION))
    pods = [p for p in children.pods if pool_of(p) == role and labels_of(p).get(LABEL_REVISION) in ours]
    known = {name_of(pod): loads[name_of(pod)] for pod in pods if name_of(pod) in loads}
    for pod, cost in decision_report.deletion_costs(pods, known).items():
        patch = {"metadata": {"annotations": {decision_report.DELETION_COST: cost}}}
        try:
            await kube.merge(POD, key[0], pod, patch)
        except NotFound:
            continue
        except (Conflict, Forbidden, Invalid) as error:
            log.warning("%s/%s: deletion cost of %s not set: %s", *key, pod, error)
