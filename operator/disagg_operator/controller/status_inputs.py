"""Reads what a status needs in addition to the children, and combines all of it into `Observed`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from disagg_operator.autoscaling.live import Live
from disagg_operator.controller.acceptance import AcceptedDeployment
from disagg_operator.controller.children import Children
from disagg_operator.controller.replicas import Replicas
from disagg_operator.desired import Images
from disagg_operator.desired.attachments import resources_of
from disagg_operator.desired.names import router_name
from disagg_operator.desired.pod_templates import worker_template
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Forbidden
from disagg_operator.kube.pods import is_leaving, is_ready, is_terminating, pool_of
from disagg_operator.kube.resources import DEPLOYMENT, NETWORK_ATTACHMENT, NODE, labels_of
from disagg_operator.rollout import looking
from disagg_operator.status import workloads
from disagg_operator.status.image_digests import moved_tags
from disagg_operator.status.network_check import Findings, needs_of, network_check
from disagg_operator.status.workloads import NetworkCheck, Observed, Workload
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_COMPONENT
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)

# A node with the device, or the network, may come at any time.
NETWORK_RETRY_S = 4.0


class Looker:
    """Reads the state of the cluster for the status of a deployment."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def observe(
        self,
        plan: AcceptedDeployment,
        children: Children,
        pools: Mapping[str, Replicas],
        live: Live,
        key: Key,
        revisions: Mapping[str, str],
    ) -> Observed:
        """Return the current state of a deployment, whose pools should have these revisions.

        Raises KubeError.
        """

        def pods(component: str) -> list[Obj]:
            return [pod for pod in children.pods if _component(pod) == component]

        def pool(role: str) -> Workload:
            found = looking.workloads(children.objects.values())
            deployments = [
                _without_leaving(d, looking.pods_of(children.pods, k)) for k, d in found.items() if k[0] == role
            ]
            revision = revisions.get(role, "")
            return workloads.pool(role, pools[role].size, deployments, revision, pods(role), live.told, live.hindered)

        router = children.get(DEPLOYMENT.kind, router_name(key[1]))
        return Observed(
            pools={role: pool(role) for role in ROLES},
            router=workloads.workload(
                "router", plan.resource.spec.router.replicas, router, pods("router"), live.told, live.hindered
            ),
            network=await self._network(plan, children, live, revisions),
            view=live.view,
            verdict=live.spared.verdict,
            warnings=moved_tags(children.pods),
        )

    async def _network(
        self, plan: AcceptedDeployment, children: Children, live: Live, revisions: Mapping[str, str]
    ) -> NetworkCheck:
        network, namespace = plan.resource.spec.kv_transfer.network, plan.resource.metadata.namespace
        if network is None:
            return NetworkCheck()
        resources = resources_of(network)
        pools = {
            role: needs_of(_template(plan, children, role, revisions.get(role, "")), namespace, resources)
            for role in ROLES
        }
        multus, hidden = await self._kube.has_api(NETWORK_ATTACHMENT), set[tuple[str, str]]()
        nads: dict[tuple[str, str], Obj | None] = {}
        for where in {link.where for pool in pools.values() for link in pool.links} if multus else ():
            try:
                nads[where] = await self._kube.get(NETWORK_ATTACHMENT, *where)
            except Forbidden as error:
                log.warning("%s/%s can't be read: %s", *where, error)
                hidden.add(where)
        return network_check(
            Findings(
                namespace=namespace,
                pools=pools,
                multus=multus,
                nads=nads,
                hidden=frozenset(hidden),
                nodes=await self._nodes() if resources else None,
                pods=[pod for pod in children.pods if pool_of(pod) and not is_terminating(pod)],
                declared=plan.resource.spec.kv_transfer.transport,
                tolerant=not plan.resource.spec.kv_transfer.forbids_fallback,
                view=live.view,
                told=live.told,
            )
        )

    async def _nodes(self) -> list[Obj] | None:
        try:
            return await self._kube.list(NODE)
        except Forbidden as error:
            log.warning("nodes can't be listed: %s", error)
            return None


def _template(plan: AcceptedDeployment, children: Children, role: str, revision: str) -> Obj:
    """Return the template of the workers of a pool: that of its revision, or what it will be."""
    found = {key: d for key, d in looking.workloads(children.objects.values()).items() if key[0] == role}
    present = found.get((role, revision)) or next(iter(found.values()), None)
    if present is None:
        return worker_template(plan.resource, role, Images())[0]
    return dict((present.get("spec") or {}).get("template") or {})


def _without_leaving(deployment: Obj, pods: Sequence[Obj]) -> Obj:
    """Return a Deployment whose status counts none of the workers that drain before they go."""
    leaving = [pod for pod in pods if is_leaving(pod) and not is_terminating(pod)]
    if not leaving:
        return deployment
    status = deployment.get("status") or {}
    fewer = {"replicas": len(leaving), "updatedReplicas": len(leaving), "readyReplicas": sum(map(is_ready, leaving))}
    counts = {field: max(0, int(status.get(field) or 0) - count) for field, count in fewer.items()}
    return {**deployment, "status": {**status, **counts}}


def _component(pod: Obj) -> str:
    return pool_of(pod) or labels_of(pod).get(LABEL_COMPONENT, "")
