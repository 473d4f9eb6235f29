"""PURE: The models of spec.prefill and spec.decode: one pool of workers, and its pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from disagg_operator.api.base import (
    Arguments,
    ByteQuantity,
    DnsName,
    Free,
    LabelKey,
    Model,
    Quantity,
    Replicas,
    ResourceName,
)
from disagg_operator.api.expressions import present
from disagg_operator.api.rollout import Amount
from disagg_operator.api.rules import Rule
from disagg_operator.api.scaling import Autoscaling


class Accelerator(Model):
    """The GPUs of one worker."""

    product: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        description="Value of productLabel that the pool's nodes must carry.",
    )
    product_label: LabelKey | None = Field(
        None,
        description="Node label that holds the product. Default: by resourceName, nvidia.com/gpu.product, "
        "amd.com/gpu.product-name or gpu.intel.com/product.",
    )
    count: int = Field(1, ge=0, le=64, description="Devices per worker.")
    resource_name: ResourceName = Field("nvidia.com/gpu", description="The extended resource that is asked for.")


class DeviceClaim(Model):
    """The devices of a worker by dynamic resource allocation."""

    template_name: DnsName = Field(
        description="ResourceClaimTemplate of the namespace, by which each worker gets a claim of its own."
    )
    accelerators: bool = Field(
        True, description="Whether the accelerators come by it, too, so that none are asked for by resourceName."
    )
    rdma_devices: int = Field(
        0, ge=0, le=64, description="How many RDMA devices come by it, for kvTransfer.network.devicesBy: Claim."
    )


class Parallelism(Model):
    """The division of the model over the ranks of one worker."""

    tensor: int = Field(
        1,
        ge=1,
        le=64,
        description="Tensor parallel size: ranks, with a GPU each, that a worker is split over.",
    )


class Resources(Model):
    """Compute resources of a container, as in a Pod, but for accelerators and RDMA devices."""

    requests: dict[str, Quantity] | None = Field(None, max_length=16, description="Guaranteed amounts, by resource.")
    limits: dict[str, Quantity] | None = Field(None, max_length=16, description="Upper bounds, by resource.")

    def as_pod(self) -> dict[str, dict[str, str]]:
        """Return the resources of a container as text, so that 1 and "1" give the same revision."""
        sections = {"requests": self.requests, "limits": self.limits}
        return {name: {k: str(v) for k, v in amounts.items()} for name, amounts in sections.items() if amounts}


_NOT_NAMED = "must be a list of maps, each with a name"


def _all_named(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(i, dict) and isinstance(i.get("name"), str) for i in items)


class PodTemplate(Model):
    """A patch of the generated pod template.

    Maps are merged by key; containers, volumes and env by name. The worker is `main`.
    """

    metadata: Free | None = Field(None, description="Further labels and annotations.")
    spec: Free | None = Field(None, description="As spec of a Pod, any part of it.")

    def as_patch(self) -> dict[str, Any]:
        """Return the parts that are set."""
        return {k: v for k, v in (("metadata", self.metadata), ("spec", self.spec)) if v is not None}

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the parts that cannot be merged.

        The schema accepts any content; the API server checks the rest in the rendered pod.
        """
        metadata, spec = self.metadata or {}, self.spec or {}
        for name in ("labels", "annotations"):
            if not isinstance(metadata.get(name, {}), dict):
                yield f"metadata.{name}", "must be a map"
        for name in ("containers", "initContainers", "volumes"):
            items = spec.get(name, [])
            if not _all_named(items):
                yield f"spec.{name}", _NOT_NAMED
                continue
            for item in items:
                if not _all_named(item.get("env", [])):
                    yield f"spec.{name}[{item['name']}].env", _NOT_NAMED


class Drain(Model):
    """The departure of a worker."""

    timeout_seconds: int = Field(
        300,
        ge=1,
        le=86_400,
        description="How long running requests may go on after the worker was told to stop.",
    )


class PoolSpec(Model):
    """One pool of workers."""

    rules = (
        Rule(
            message="set replicas or autoscaling, not both",
            condition=~(present("replicas") & present("autoscaling")),
            field="autoscaling",
        ),
    )
    replicas: Replicas | None = Field(
        None,
        description="Fixed number of workers (default 1); afterwards `kubectl scale dp/NAME` or an HPA may change it.",
    )
    autoscaling: Autoscaling | None = Field(None, description="Let the operator scale this pool by its load.")
    accelerator: Accelerator | None = Field(
        None,
        description="GPUs of each worker. Default: none, the worker computes on the CPU.",
    )
    device_claim: DeviceClaim | None = Field(
        None, description="Get devices by dynamic resource allocation (DRA) instead of by device plugins."
    )
    parallelism: Parallelism = Field(Parallelism(), description="How one worker splits the model.")
    args: Arguments = Field([], description="Further arguments of this pool's engine, after those of engine.args.")
    resources: Resources | None = Field(None, description="Requests and limits of the worker container.")
    kv_cache_size: ByteQuantity | None = Field(
        None,
        description="Memory of one worker's KV cache, such as 2Gi. Default: 256Mi; for other engines, as they choose.",
    )
    max_running_requests: int = Field(
        64,
        ge=1,
        le=4096,
        description="Most sequences that one worker computes at a time.",
    )
    max_batch_tokens: int = Field(2048, ge=16, le=1_048_576, description="Token budget of one prefill batch.")
    max_surge: Amount | None = Field(None, description="rollout.maxSurge of this pool.")
    max_unavailable: Amount | None = Field(None, description="rollout.maxUnavailable of this pool.")
    drain: Drain = Field(Drain(), description="How a worker leaves.")
    pod_template: PodTemplate | None = Field(
        None,
        description="Merged over the generated pod template: maps by key, containers and volumes by name (the "
        "worker is `main`).",
    )

    @property
    def initial_replicas(self) -> int:
        """The number of workers to start with."""
        if self.autoscaling is not None:
            return self.autoscaling.min_replicas
        return 1 if self.replicas is None else self.replicas
