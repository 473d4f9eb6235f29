"""PURE: DisaggDeployment, disagg.dev/v1alpha1.

Every field has a description: `kubectl explain dd.spec` is the manual. A rule that the schema of a
field cannot express is one of the `rules` of its model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from disagg_operator.api.admission import refusals, unknown_fields
from disagg_operator.api.base import DnsLabel, LocalSecret, Model, SecretRef
from disagg_operator.api.engine import EngineSpec, ModelSpec
from disagg_operator.api.engine_rules import argument_problems, engine_rules
from disagg_operator.api.expressions import (
    Expression,
    at_most,
    choice,
    differ,
    equal,
    field,
    filled,
    length,
    matches,
    present,
)
from disagg_operator.api.liveness import LivenessSpec
from disagg_operator.api.network import KvTransferSpec
from disagg_operator.api.prometheus import PrometheusSpec
from disagg_operator.api.rollout import RolloutSpec
from disagg_operator.api.rules import Rule
from disagg_operator.api.scaling import Objectives, ScalingSpec
from disagg_operator.api.status import Status
from disagg_operator.api.tracing import TracingSpec
from disagg_operator.api.upstream import UpstreamSpec
from disagg_operator.api.workers import PodTemplate, PoolSpec, Resources

# The name must leave room for the longest child, the Secret NAME-cluster-key: the value of a label
# has at most 63 characters.
_MAX_NAME = 63 - len("-cluster-key")


class RouterQueue(Model):
    """The queue of requests that wait while the pools are full."""

    max_depth: int = Field(1024, ge=0, le=1_000_000, description="Requests that may wait; further ones get 429.")
    max_wait_seconds: int = Field(60, ge=0, le=3600, description="How long one may wait before it gets 503.")
    order: Literal["EarliestDeadline", "FirstComeFirstServed"] = Field(
        "EarliestDeadline",
        description="Who goes first, in this queue and in prefill's. EarliestDeadline: whoever can still get the "
        "first token within objectives.ttftSeconds, the earliest deadline first; who can't any more comes after "
        "them, but after 20 s (a third of maxWaitSeconds, if that is less) at times first. In a burst only what is "
        "too much is late, not everybody. FirstComeFirstServed: by arrival.",
    )


class RouterService(Model):
    """The Service in front of the router."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field("ClusterIP", description="Kind of Service.")
    port: int = Field(80, ge=1, le=65535, description="Its port.")


class RouterSpec(Model):
    """The OpenAI-compatible front door."""

    replicas: int = Field(2, ge=1, le=100, description="Number of routers.")
    image: str | None = Field(
        None,
        min_length=1,
        max_length=512,
        description="Router image. Default: the operator's own release.",
    )
    resources: Resources | None = Field(
        None,
        description="Requests and limits of the router container. Default: 100m, 128Mi to 512Mi.",
    )
    queue: RouterQueue = Field(RouterQueue(), description="What waits when the pools are full.")
    service: RouterService = Field(RouterService(), description="The Service in front of the router.")
    api_keys_secret_ref: SecretRef | None = Field(
        None,
        description="Secret whose key holds accepted API keys, one a line, or as JSON with the limits of each "
        "(docs/operator.md). Default: none asked.",
    )
    local_prefill_max_tokens: int | None = Field(
        None,
        ge=0,
        le=1 << 20,
        description="The most tokens of a prompt that decode prefills itself, if it has the KV of all before them: "
        "they take less time there than their way to prefill and back. 0: none. Default: 64.",
    )
    liveness: LivenessSpec | None = Field(None, description="When a worker is given up that says nothing, or hangs.")
    upstream: UpstreamSpec | None = Field(
        None,
        description="A service with the same API and model to which the routers send a share of the requests, while "
        "this deployment replaces it (docs/migrate.md).",
    )
    pod_template: PodTemplate | None = Field(
        None,
        description="Merged over the routers' pod template like a pool's podTemplate; the router is `main`.",
    )


class Observability(Model):
    """Metrics."""

    prometheus: PrometheusSpec | None = Field(
        None,
        description="Scale by this Prometheus. Default: scrape router and workers directly.",
    )


class RequestObservability(Observability):
    """Metrics and traces."""

    tracing: TracingSpec | None = Field(None, description="Traces of requests (docs/tracing.md). Default: none.")


class Security(Model):
    """Hardening."""

    network_policy: bool = Field(True, description="Let only routers and workers of this deployment reach the workers.")


def _same(path: str) -> Expression:
    """Test whether a field has the same value in both pools."""
    return equal(field(f"prefill.{path}"), field(f"decode.{path}"))


def _set_alike(path: str) -> Expression:
    """Test whether a field is set in both pools or in neither."""
    return equal(present(f"prefill.{path}"), present(f"decode.{path}"))


_SAME_ACCELERATOR = _set_alike("accelerator") & (
    ~present("prefill.accelerator")
    | _same("accelerator.count")
    & _same("accelerator.resourceName")
    & _set_alike("accelerator.product")
    & (~present("prefill.accelerator.product") | _same("accelerator.product"))
    & _set_alike("accelerator.productLabel")
    & (~present("prefill.accelerator.productLabel") | _same("accelerator.productLabel"))
)
_FLIPS_NOT = ~present("scaling") | ~present("scaling.roleFlip") | ~field("scaling.roleFlip")


def _same_quantities_if_flipped(spec: Spec) -> bool:
    """Compare what CEL cannot: a quantity may be written in several ways."""
    same = spec.prefill.resources == spec.decode.resources and spec.prefill.kv_cache_size == spec.decode.kv_cache_size
    return same or not spec.scaling.role_flip


_HAS_METRICS = (present("prefill.autoscaling") & filled("prefill.autoscaling.metrics")) | (
    present("decode.autoscaling") & filled("decode.autoscaling.metrics")
)
_NOT_DECLARED_PREDICTIVE = ~present("scaling.policy") | differ(field("scaling.policy"), "predictive")
_GOES_BY_QUEUE = choice(present("scaling.policy"), equal(field("scaling.policy"), "queue"), _HAS_METRICS)
_NOTHING_PREDICTIVE = (
    ~(present("scaling.roleFlip") & field("scaling.roleFlip"))
    & ~present("scaling.ratio")
    & ~filled("scaling.schedule")
    & ~present("scaling.maxGPUs")
)


class Spec(Model):
    """The desired state."""

    rules = (
        Rule(
            message="roleFlip needs autoscaling in both pools, and the same accelerator, resources and kvCacheSize "
            "in both",
            condition=_FLIPS_NOT | present("prefill.autoscaling") & present("decode.autoscaling") & _SAME_ACCELERATOR,
            field="scaling.roleFlip",
            further=_same_quantities_if_flipped,
        ),
        Rule(
            message="the policy queue (which metrics ask for) knows no ratio, schedule, maxGPUs or roleFlip; use "
            "predictive",
            condition=~present("scaling") | ~_GOES_BY_QUEUE | _NOTHING_PREDICTIVE,
            field="scaling.policy",
        ),
        Rule(
            message="metrics are for the policy queue; predictive goes by objectives",
            condition=~present("scaling") | _NOT_DECLARED_PREDICTIVE | ~_HAS_METRICS,
            field="scaling.policy",
        ),
        *engine_rules(),
    )
    model: ModelSpec = Field(description="The model that both pools serve.")
    engine: EngineSpec = Field(EngineSpec(), description="The inference engine of both pools.")
    prefill: PoolSpec = Field(description="Workers that compute prompts.")
    decode: PoolSpec = Field(description="Workers that generate tokens.")
    kv_transfer: KvTransferSpec = Field(KvTransferSpec(), description="How the KV cache gets from prefill to decode.")
    router: RouterSpec = Field(RouterSpec(), description="The OpenAI-compatible front door.")
    objectives: Objectives = Field(
        Objectives(),
        description="What the scaling aims at; the routers count who keeps it.",
    )
    scaling: ScalingSpec = Field(ScalingSpec(), description="Scaling of both pools.")
    rollout: RolloutSpec = Field(RolloutSpec(), description="How a change of the workers is rolled out.")
    observability: RequestObservability = Field(RequestObservability(), description="Metrics and traces.")
    security: Security = Field(Security(), description="Hardening.")
    image_pull_secrets: list[LocalSecret] = Field(
        [],
        max_length=16,
        description="Secrets with which the images of workers and routers are pulled.",
    )
    suspend: bool = Field(False, description="Scale both pools to 0; the router stays and answers 503.")

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the broken rules, and the arguments that contradict those of the operator."""
        yield from super().broken()
        lists = {"engine.args": self.engine.args, "prefill.args": self.prefill.args, "decode.args": self.decode.args}
        yield from argument_problems(self.engine.known, lists)

    @property
    def predictive(self) -> bool:
        """Whether the policy is predictive. If none is set, metrics select the policy queue."""
        return not _GOES_BY_QUEUE.value(self)

    def pool(self, role: str) -> PoolSpec:
        """Return the pool of a role."""
        return self.prefill if role == "prefill" else self.decode


class Metadata(Model):
    """The part of metadata that the operator reads."""

    model_config = ConfigDict(extra="allow")
    name: DnsLabel
    namespace: str = "default"
    uid: str = ""
    generation: int = 0


class DisaggDeployment(Model):
    """Serves one model from a prefill pool, a decode pool and a router."""

    rules = (
        Rule(
            message=f"metadata.name must have at most {_MAX_NAME} characters",
            condition=at_most(length("metadata.name"), _MAX_NAME),
            field="metadata.name",
        ),
        Rule(
            message="metadata.name must be a DNS-1035 label: a-z first, then a-z, 0-9 and -",
            condition=matches("metadata.name", "^[a-z]([-a-z0-9]*[a-z0-9])?$"),
            field="metadata.name",
        ),
        Rule(
            message="spec.prefill.replicas and spec.decode.replicas must both be 0 or both be above 0",
            condition=equal(
                present("spec.prefill.replicas") & equal(field("spec.prefill.replicas"), 0),
                present("spec.decode.replicas") & equal(field("spec.decode.replicas"), 0),
            ),
            field="spec",
        ),
    )
    api_version: str = "disagg.dev/v1alpha1"
    kind: Literal["DisaggDeployment"] = "DisaggDeployment"
    metadata: Metadata
    spec: Spec = Field(description="What is wanted.")
    status: Status | None = Field(None, description="What is.")


class InvalidResource(ValueError):
    """Raised when a resource cannot be parsed; the message names the field."""


def read(obj: dict[str, Any]) -> DisaggDeployment:
    """Return the DisaggDeployment that a plain object holds, without its status.

    Its fields have the right types, but it may break rules. Raises InvalidResource, which names the
    first field of a wrong type.
    """
    try:
        dd = DisaggDeployment.model_validate({k: v for k, v in obj.items() if k != "status"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidResource(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    return dd


def parse(obj: dict[str, Any]) -> DisaggDeployment:
    """Return the DisaggDeployment that a plain object holds, without its status.

    Raises InvalidResource, which names the first wrong field.
    """
    dd = read(obj)
    for problem in refusals(dd):
        raise InvalidResource(problem)
    return dd


def parse_file(obj: dict[str, Any]) -> DisaggDeployment:
    """Parse a resource that no API server has validated: unknown fields are refused as well."""
    dd = parse(obj)
    for path in unknown_fields(dd, {k: v for k, v in obj.items() if k != "status"}):
        raise InvalidResource(f"{path}: unknown field")
    return dd


__all__ = ["DisaggDeployment", "InvalidResource", "PoolSpec", "Spec", "parse", "parse_file", "read"]
