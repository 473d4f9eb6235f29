"""PURE: DisaggDeployment, disagg.dev/v1alpha1. Every field has a description: `kubectl explain dd.spec` is the manual."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from disagg_operator.api import checks
from disagg_operator.api.base import (
    ByteQuantity,
    DnsLabel,
    DnsName,
    Free,
    Model,
    Quantity,
    Replicas,
    ResourceName,
    cel,
    list_map,
    rules,
)
from disagg_operator.api.network import KvTransferSpec
from disagg_operator.api.prometheus import PrometheusSpec
from disagg_operator.api.scaling import Autoscaling, Objectives, ScalingSpec
from disagg_operator.api.status import Status


class SecretRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = Field("token", min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Key inside the Secret.")


class ModelSpec(Model):
    """The model that both pools serve."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(f"self.uri.matches('{checks.URI_PATTERN}')", checks.BAD_URI, ".uri"),
            cel("!self.uri.matches('/[.][.](/|$)')", checks.DOTS, ".uri"),
            cel("!has(self.revision) || self.uri.startsWith('hf://')", checks.REVISION_NEEDS_HF, ".revision"),
            cel("!has(self.authSecretRef) || self.uri.startsWith('hf://')", checks.TOKEN_NEEDS_HF, ".authSecretRef"),
        )
    )
    uri: str = Field(
        min_length=6,
        max_length=1024,
        description="Where the checkpoint is: hf://org/name, pvc://claim/path or file:///path in the image. Safetensors, Llama family.",
    )
    name: str | None = Field(
        None, min_length=1, max_length=256, description="The name that clients ask for. Default: the last part of the uri."
    )
    revision: str | None = Field(
        None, min_length=1, max_length=256, pattern=r"^[A-Za-z0-9._/-]+$", description="Branch, tag or commit of an hf:// model."
    )
    auth_secret_ref: SecretRef | None = Field(None, description="Token for hf:// models that need one.")

    @property
    def served_name(self) -> str:
        return self.name or self.uri.rstrip("/").rsplit("/", 1)[-1]


class EnvVar(Model):
    """An environment variable of the workers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(f"!(self.name in {list(checks.RESERVED_ENV)})", checks.RESERVED, ".name"),
        )
    )
    name: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Name of the variable.")
    value: str = Field("", max_length=4096, description="Its value.")


class PrefixCaching(Model):
    """Reuse of the KV of prompts that begin alike; never between requests of different API keys."""

    enabled: bool = Field(True, description="Keep the KV of finished requests until its blocks are needed.")
    eviction: Literal["lru", "fifo"] = Field("lru", description="Which unused block goes first: least recently used, or oldest.")
    host_memory: ByteQuantity | None = Field(None, description="Host memory per worker for evicted blocks. Default: none.")


class EngineSpec(Model):
    """The inference engine of both pools."""

    type: Literal["builtin"] = Field("builtin", description="builtin: the bundled torch worker, the only engine of this version.")
    image: str | None = Field(None, min_length=1, max_length=512, description="Worker image. Default: the operator's own release.")
    env: list[EnvVar] = Field(
        [], max_length=64, description="Further environment of the workers, by name.", json_schema_extra=list_map("name")
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Type of weights and KV cache; auto: the checkpoint's.")
    quantization: Literal["none", "int8", "int4", "fp8"] = Field(
        "none", description="Weights are rounded to this at load (a checkpoint that is quantised stays as it is); fp8 wants a GPU."
    )
    prefix_caching: PrefixCaching = Field(PrefixCaching(), description="Reuse of KV between requests.")
    max_model_len: int | None = Field(
        None, ge=16, le=16_777_216, description="Longest prompt plus output, in tokens. Default: what the model was trained for."
    )
    block_size_tokens: int = Field(16, ge=1, le=256, description="Tokens of one KV cache block.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads of one worker.")


class Accelerator(Model):
    """The GPUs of one worker."""

    product: str | None = Field(
        None, min_length=1, max_length=63, description="Node label nvidia.com/gpu.product that the pool's nodes must carry."
    )
    count: int = Field(1, ge=0, le=64, description="Devices per worker.")
    resource_name: ResourceName = Field("nvidia.com/gpu", description="The extended resource that is asked for.")


class Parallelism(Model):
    """How one worker splits the model."""

    tensor: int = Field(1, ge=1, le=64, description="Tensor parallel size: ranks, with a GPU each, that a worker is split over.")


class Resources(Model):
    """Compute resources of a container, as in a Pod. Devices come from accelerator and rdmaResource."""

    requests: dict[str, Quantity] | None = Field(None, max_length=16, description="Guaranteed amounts, by resource.")
    limits: dict[str, Quantity] | None = Field(None, max_length=16, description="Upper bounds, by resource.")

    def as_pod(self) -> dict[str, dict[str, str]]:
        """As in a container. Amounts are text, so that 1 and "1" make the same revision."""
        sections = {"requests": self.requests, "limits": self.limits}
        return {name: {k: str(v) for k, v in amounts.items()} for name, amounts in sections.items() if amounts}


class PodTemplate(Model):
    """What is merged over the generated pod template: maps by key, containers, volumes and env by name; the worker is `main`."""

    metadata: Free | None = Field(None, description="Further labels and annotations.")
    spec: Free | None = Field(None, description="As spec of a Pod, any part of it.")

    def as_patch(self) -> dict[str, Any]:
        return {k: v for k, v in (("metadata", self.metadata), ("spec", self.spec)) if v is not None}


class Drain(Model):
    """How a worker leaves."""

    timeout_seconds: int = Field(300, ge=1, le=86_400, description="How long running requests may go on after the worker was told to stop.")


class PoolSpec(Model):
    """One pool of workers."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel("!(has(self.replicas) && has(self.autoscaling))", checks.REPLICAS_XOR, ".autoscaling"),
        )
    )
    replicas: Replicas | None = Field(
        None, description="Fixed number of workers (default 1); afterwards `kubectl scale dp/NAME` or an HPA may change it."
    )
    autoscaling: Autoscaling | None = Field(None, description="Let the operator scale this pool by its load.")
    accelerator: Accelerator | None = Field(None, description="GPUs of each worker. Default: none, the worker computes on the CPU.")
    parallelism: Parallelism = Field(Parallelism(), description="How one worker splits the model.")
    resources: Resources | None = Field(None, description="Requests and limits of the worker container.")
    kv_cache_size: ByteQuantity | None = Field(None, description="Memory of one worker's KV cache, such as 2Gi. Default: 256Mi.")
    max_running_requests: int = Field(64, ge=1, le=4096, description="Most sequences that one worker computes at a time.")
    max_batch_tokens: int = Field(2048, ge=16, le=1_048_576, description="Token budget of one prefill batch.")
    drain: Drain = Field(Drain(), description="How a worker leaves.")
    pod_template: PodTemplate | None = Field(
        None, description="Merged over the generated pod template: maps by key, containers and volumes by name (the worker is `main`)."
    )

    @property
    def initial_replicas(self) -> int:
        if self.autoscaling is not None:
            return self.autoscaling.min_replicas
        return 1 if self.replicas is None else self.replicas


class RouterQueue(Model):
    """What waits when the pools are full."""

    max_depth: int = Field(1024, ge=0, le=1_000_000, description="Requests that may wait; further ones get 429.")
    max_wait_seconds: int = Field(60, ge=0, le=3600, description="How long one may wait before it gets 503.")
    order: Literal["EarliestDeadline", "FirstComeFirstServed"] = Field(
        "EarliestDeadline",
        description="Who goes first, in this queue and in prefill's. EarliestDeadline: whoever can still get the first token within "
        "objectives.ttftSeconds, the earliest deadline first; who can't any more comes after them, but after 20 s (a third of "
        "maxWaitSeconds, if that is less) at times first. In a burst only what is too much is late, not everybody. "
        "FirstComeFirstServed: by arrival.",
    )


class RouterService(Model):
    """The Service in front of the router."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Kind of Service.")
    port: int = Field(80, ge=1, le=65535, description="Its port.")


class RouterSpec(Model):
    """The OpenAI-compatible front door."""

    replicas: int = Field(2, ge=1, le=100, description="Number of routers.")
    image: str | None = Field(None, min_length=1, max_length=512, description="Router image. Default: the operator's own release.")
    resources: Resources | None = Field(None, description="Requests and limits of the router container. Default: 100m, 128Mi to 512Mi.")
    queue: RouterQueue = Field(RouterQueue(), description="What waits when the pools are full.")
    service: RouterService = Field(RouterService(), description="The Service in front of the router.")
    api_keys_secret_ref: SecretRef | None = Field(
        None, description="Secret whose key holds accepted API keys, one a line. Default: none asked."
    )


class Observability(Model):
    """Metrics."""

    prometheus: PrometheusSpec | None = Field(None, description="Scale by this Prometheus. Default: scrape router and workers directly.")


class Security(Model):
    """Hardening."""

    network_policy: bool = Field(True, description="Let only routers and workers of this deployment reach the workers.")


class Spec(Model):
    """What is wanted."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(checks.FLIP_RULE, checks.FLIP_EQUAL, ".scaling.roleFlip"),
            cel(checks.QUEUE_RULE, checks.QUEUE_ONLY, ".scaling.policy"),
            cel(checks.METRICS_RULE, checks.METRICS_ONLY, ".scaling.policy"),
        )
    )
    model: ModelSpec = Field(description="The model that both pools serve.")
    engine: EngineSpec = Field(EngineSpec(), description="The inference engine of both pools.")
    prefill: PoolSpec = Field(description="Workers that compute prompts.")
    decode: PoolSpec = Field(description="Workers that generate tokens.")
    kv_transfer: KvTransferSpec = Field(KvTransferSpec(), description="How the KV cache gets from prefill to decode.")
    router: RouterSpec = Field(RouterSpec(), description="The OpenAI-compatible front door.")
    objectives: Objectives = Field(Objectives(), description="What the scaling aims at; the routers count who keeps it.")
    scaling: ScalingSpec = Field(ScalingSpec(), description="Scaling of both pools.")
    observability: Observability = Field(Observability(), description="Metrics.")
    security: Security = Field(Security(), description="Hardening.")
    suspend: bool = Field(False, description="Scale both pools to 0; the router stays and answers 503.")

    @property
    def predictive(self) -> bool:
        """The policy that is meant: metrics ask for the one that has targets."""
        if self.scaling.policy is not None:
            return self.scaling.policy == "predictive"
        return not any(p.autoscaling is not None and p.autoscaling.metrics for p in (self.prefill, self.decode))

    def pool(self, role: str) -> PoolSpec:
        return self.prefill if role == "prefill" else self.decode


class Metadata(Model):
    """The part of metadata that we read."""

    model_config = ConfigDict(extra="allow")
    name: DnsLabel
    namespace: str = "default"
    uid: str = ""
    generation: int = 0


class DisaggDeployment(Model):
    """Serves one model from a prefill pool, a decode pool and a router."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(f"size(self.metadata.name) <= {checks.MAX_NAME}", checks.LONG_NAME),
            cel(f"self.metadata.name.matches('{checks.NAME_PATTERN}')", checks.BAD_NAME),
            cel(
                "(has(self.spec.prefill.replicas) && self.spec.prefill.replicas == 0) == "
                "(has(self.spec.decode.replicas) && self.spec.decode.replicas == 0)",
                checks.BOTH_ZERO,
                ".spec",
            ),
        )
    )
    api_version: str = "disagg.dev/v1alpha1"
    kind: Literal["DisaggDeployment"] = "DisaggDeployment"
    metadata: Metadata
    spec: Spec = Field(description="What is wanted.")
    status: Status | None = Field(None, description="What is.")


class InvalidResource(ValueError):
    """The resource can't be understood; the message names the field."""


def parse(obj: dict[str, Any]) -> DisaggDeployment:
    """A DisaggDeployment from a plain object (status is left out). Raises InvalidResource naming the first wrong field."""
    try:
        dd = DisaggDeployment.model_validate({k: v for k, v in obj.items() if k != "status"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidResource(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    for problem in checks.problems(dd):
        raise InvalidResource(problem)
    return dd


def parse_file(obj: dict[str, Any]) -> DisaggDeployment:
    """As `parse`, for a resource that no API server has seen: unknown fields are refused, too."""
    dd = parse(obj)
    for path in checks.unknown_fields(dd, {k: v for k, v in obj.items() if k != "status"}):
        raise InvalidResource(f"{path}: unknown field")
    return dd


__all__ = ["DisaggDeployment", "InvalidResource", "PoolSpec", "Spec", "parse", "parse_file"]
