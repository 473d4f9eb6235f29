"""PURE: a plan as a DisaggDeployment that can be applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from disagg_operator.api import parse_file
from disagg_operator.planning.capacity import Infeasible, PoolPlan
from disagg_operator.planning.model_shape import ModelShape, PlanError
from disagg_operator.planning.plan import Plan

_RESOURCES = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan can't know. `rdma_resource`: the extended resource of the nodes' RDMA devices; `network`: an existing
    NetworkAttachmentDefinition. `scaled`: the counts are the most, not fixed."""

    name: str
    uri: str
    rdma_resource: str | None = None
    network: str | None = None
    scaled: bool = False


def deployment(plan: Plan, wishes: Wishes) -> dict[str, Any]:
    """The disaggregated half of the plan. Raises PlanError (also where the API would refuse it)."""
    d = plan.disaggregated
    if isinstance(d, Infeasible):
        raise PlanError(f"nothing to apply: {d.limit}: {d.reason}")
    model = plan.question.model
    spec: dict[str, Any] = {"model": {"uri": wishes.uri}}
    for pool in d.pools:
        spec[pool.role] = _pool(pool, model, wishes.scaled)
    spec["kvTransfer"] = _transfer(plan, wishes)
    objectives = plan.question.objectives
    if objectives.percentile == 0.99:  # the only one that a resource can state
        spec["objectives"] = {"ttftSeconds": {"p99": objectives.ttft_s}, "tpotSeconds": {"p99": objectives.tpot_s}}
    out = {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "metadata": {"name": wishes.name}, "spec": spec}
    try:
        parse_file(out)
    except ValueError as error:
        raise PlanError(str(error)) from None
    return out


def _pool(pool: PoolPlan, model: ModelShape, scaled: bool) -> dict[str, Any]:
    count = {"autoscaling": {"minReplicas": 1, "maxReplicas": pool.replicas}} if scaled else {"replicas": pool.replicas}
    accelerator: dict[str, Any] = {"count": pool.tensor}
    if pool.gpu.vendor == "NVIDIA":
        accelerator["product"] = pool.gpu.product
    else:  # its nodes carry no nvidia.com/gpu.product
        accelerator["resourceName"] = _RESOURCES[pool.gpu.vendor]
    cache_mib = int(pool.profile.kv_tokens * model.kv_bytes_per_token) >> 20
    out = {"accelerator": accelerator, "parallelism": {"tensor": pool.tensor}, **count, "kvCacheSize": f"{max(1, cache_mib)}Mi"}
    limit = {"maxBatchTokens": pool.batch} if pool.role == "prefill" else {"maxRunningRequests": pool.batch}
    return out | limit


def _transfer(plan: Plan, wishes: Wishes) -> dict[str, Any]:
    """RDMA is declared only where its device is named: the API refuses it otherwise."""
    network: dict[str, Any] = {}
    if wishes.network:
        network["attachmentRef"] = {"name": wishes.network}
    rdma = plan.question.network.name.startswith("rdma") and wishes.rdma_resource is not None
    if rdma and not wishes.network:
        raise PlanError("--rdma-resource: needs --network-attachment, the NetworkAttachmentDefinition of the RDMA network")
    if rdma:
        network["rdmaResource"] = {"name": wishes.rdma_resource}
    out: dict[str, Any] = {"transport": "rdma" if rdma else "tcp" if plan.question.network.name.startswith("ethernet") else "auto"}
    return out | ({"network": network} if network else {})
