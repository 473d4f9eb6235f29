"""PURE: The DisaggDeployment that a plan describes, ready to be applied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from disagg_operator.api import parse_file
from disagg_operator.api.engine import EngineSpec
from disagg_operator.api.workers import PoolSpec
from disagg_operator.engines import BY_NAME, DEFAULT
from disagg_operator.engines.contract import EngineLimits
from disagg_operator.performance.model_shape import ModelShape, PlanError
from disagg_operator.planning.capacity import Infeasible, PoolPlan
from disagg_operator.planning.deployment_plan import Plan

_VERSION = "disagg.dev/v1alpha1"
_RESOURCES = {"NVIDIA": "nvidia.com/gpu", "AMD": "amd.com/gpu"}


@dataclass(frozen=True, slots=True)
class Wishes:
    """The parts of a resource that do not follow from the plan."""

    name: str
    """The name of the resource."""
    uri: str
    """The URI of the model."""
    rdma_resource: str | None = None
    """The extended resource of the RDMA devices of the nodes."""
    network: str | None = None
    """The name of an existing NetworkAttachmentDefinition."""
    scaled: bool = False
    """Whether the planned replicas are the maximum for autoscaling instead of fixed."""
    rounded_bits: int | None = None
    """The bits to which the engine rounds the weights at load; None: as in the checkpoint."""
    kv_bits: int = 16
    """The bits of an element of the KV cache."""
    engine: str = DEFAULT.name
    """The engine of the resource."""


def check(wishes: Wishes, model: ModelShape) -> None:
    """Raise PlanError, before any planning, if no plan with these wishes could be applied."""
    _needs_engine(model, wishes)
    _needs_network(wishes)
    engine = BY_NAME[wishes.engine]
    if not engine.plans_pairs:
        raise PlanError(
            f"--engine {engine.name}: its hand-over from prefill to decode is an experiment: "
            "no plan of two pools is written for it"
        )
    if wishes.kv_bits != 16 and engine.fp8_cache is None:
        raise PlanError(
            f"--kv-bits {wishes.kv_bits}: no DisaggDeployment can ask for it with --engine {engine.name}: "
            "its cache has the type of the weights"
        )
    pool = {"replicas": 1, "accelerator": {"count": 1}}
    spec = {"model": {"uri": wishes.uri}, "engine": _engine(wishes, fp8=True), "prefill": pool, "decode": pool}
    if wishes.network:
        spec["kvTransfer"] = {"network": {"attachmentRef": {"name": wishes.network}}}
    _parsed({"apiVersion": _VERSION, "kind": "DisaggDeployment", "metadata": {"name": wishes.name}, "spec": spec})


def deployment(plan: Plan, wishes: Wishes) -> dict[str, Any]:
    """Return the disaggregated deployment of a plan as a resource.

    Raises PlanError, also if the API would refuse the resource.
    """
    _needs_engine(plan.question.model, wishes)
    d = plan.disaggregated
    if isinstance(d, Infeasible):
        raise PlanError(f"nothing to apply: {d.limit}: {d.reason}")
    model = plan.question.model
    spec: dict[str, Any] = {"model": {"uri": wishes.uri}}
    if engine := _engine(wishes, fp8=all(pool.gpu.fp8_flops for pool in d.pools)):
        spec["engine"] = engine
    for pool in d.pools:
        spec[pool.role] = _pool(pool, model, wishes)
    spec["kvTransfer"] = _transfer(plan, wishes)
    objectives = plan.question.objectives
    if objectives.percentile == 0.99:  # the only percentile that a resource can state
        spec["objectives"] = {"ttftSeconds": {"p99": objectives.ttft_s}, "tpotSeconds": {"p99": objectives.tpot_s}}
    out = {"apiVersion": _VERSION, "kind": "DisaggDeployment", "metadata": {"name": wishes.name}, "spec": spec}
    _parsed(out)
    return out


def _parsed(out: dict[str, Any]) -> None:
    try:
        parse_file(out)
    except ValueError as error:
        raise PlanError(str(error)) from None


def _engine(wishes: Wishes, *, fp8: bool) -> dict[str, Any]:
    """Return spec.engine, in which 8 bits of a weight are fp8 where the GPUs compute with it."""
    engine = BY_NAME[wishes.engine]
    out: dict[str, Any] = {} if engine is DEFAULT else {"type": engine.name}
    if wishes.rounded_bits is not None and wishes.rounded_bits < 16:
        out["quantization"] = "fp8" if fp8 and wishes.rounded_bits == 8 else f"int{wishes.rounded_bits}"
    if wishes.kv_bits != 16 and engine.fp8_cache is not None:
        out["args"] = [*engine.fp8_cache]
    return out


def _needs_engine(model: ModelShape, wishes: Wishes) -> None:
    engine = BY_NAME[wishes.engine]
    if engine.serves_every_model:
        return
    kinds = [k for k, has in (("mixtures of experts", model.experts), ("latent attention", model.latent)) if has]
    if kinds:
        raise PlanError(
            f"{model.name}: --engine {engine.name} has no {' and no '.join(kinds)}: "
            "the plan is for another engine (choose one, or leave --yaml away)"
        )


def _needs_network(wishes: Wishes) -> None:
    if wishes.rdma_resource is not None and not wishes.network:
        raise PlanError(
            "--rdma-resource: needs --network-attachment, the NetworkAttachmentDefinition of the RDMA network"
        )


def _pool(pool: PoolPlan, model: ModelShape, wishes: Wishes) -> dict[str, Any]:
    engine = BY_NAME[wishes.engine]
    scale = {"autoscaling": {"minReplicas": 1, "maxReplicas": pool.replicas}}
    count = scale if wishes.scaled else {"replicas": pool.replicas}
    accelerator: dict[str, Any] = {"count": pool.tensor}
    if pool.gpu.vendor == "NVIDIA":
        accelerator["product"] = pool.gpu.product
    else:  # other nodes have no label nvidia.com/gpu.product
        accelerator["resourceName"] = _RESOURCES[pool.gpu.vendor]
    cache_mib = int(pool.profile.kv_tokens * model.kv_bytes_per_token) >> 20
    out = {"accelerator": accelerator, "parallelism": {"tensor": pool.tensor}, **count}
    if f"{pool.role}.kvCacheSize" not in engine.limits.absent:
        out["kvCacheSize"] = f"{max(1, cache_mib)}Mi"
    return out | _batch(pool, engine.limits)


def _batch(pool: PoolPlan, limits: EngineLimits) -> dict[str, int]:
    """Return the limits of the batches, such that the engine takes them."""
    if pool.role == "prefill":
        blocks = EngineSpec().block_size_tokens if limits.batch_in_blocks else 1
        return {"maxBatchTokens": math.ceil(pool.batch / blocks) * blocks}
    out = {"maxRunningRequests": pool.batch}
    default = PoolSpec().max_batch_tokens
    return out | ({"maxBatchTokens": pool.batch} if limits.batch_holds_running and pool.batch > default else {})


def _transfer(plan: Plan, wishes: Wishes) -> dict[str, Any]:
    """Return spec.kvTransfer.

    It declares RDMA only if the resource of the device is known, because the API refuses it
    otherwise.
    """
    network: dict[str, Any] = {}
    if wishes.network:
        network["attachmentRef"] = {"name": wishes.network}
    rdma = plan.question.network.name.startswith("rdma") and wishes.rdma_resource is not None
    if rdma:
        _needs_network(wishes)
    if rdma:
        network["rdmaResource"] = {"name": wishes.rdma_resource}
    out: dict[str, Any] = {
        "transport": "rdma" if rdma else "tcp" if plan.question.network.name.startswith("ethernet") else "auto"
    }
    return out | ({"network": network} if network else {})
