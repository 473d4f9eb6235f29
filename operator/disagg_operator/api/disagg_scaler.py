"""PURE: DisaggScaler, which scales a prefill pool and a decode pool of anybody.

The pools are whatever has a `/scale` subresource, and their metrics are those of the engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from disagg_operator.api.admission import refusals
from disagg_operator.api.base import DnsName, Model, list_map
from disagg_operator.api.expressions import Expression, at_most, differ, equal, field, present
from disagg_operator.api.rules import Rule
from disagg_operator.api.scaling import Behavior, JointScaling, Objectives, WorkerSpeed
from disagg_operator.api.status import LastDecision, StatusCondition
from disagg_operator.api.v1alpha1 import InvalidResource, Metadata, Observability
from disagg_operator.engines import BY_NAME, DEFAULT

ACTIVE = "Active"
# The engines whose own metrics say enough, and our worker's series, which adapters have, too.
_TOLD = [name for name, engine in BY_NAME.items() if engine.meter is not None or engine is DEFAULT]
_LABEL = r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"


def _known(name: str) -> str:
    if name not in _TOLD:
        raise ValueError(f"must be one of {', '.join(_TOLD)}")
    return name


MeteredEngine = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": _TOLD})]
Port = Annotated[int, Field(ge=1, le=65_535)]
LabelValue = Annotated[str, Field(max_length=63, pattern=_LABEL)]


class ScaleTarget(Model):
    """An object with a /scale subresource in the same namespace."""

    api_version: str = Field(
        "apps/v1",
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?v[a-z0-9]+$",
        description="Its API group and version, such as leaderworkerset.x-k8s.io/v1.",
    )
    kind: str = Field(
        "Deployment",
        max_length=63,
        pattern=r"^[A-Z][A-Za-z0-9]*$",
        description="Its kind, such as Deployment, StatefulSet, LeaderWorkerSet or DisaggregatedSetRoleScaler.",
    )
    name: DnsName = Field(description="Its name.")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


class PodLabels(Model):
    """Pods of the same namespace, by their labels."""

    match_labels: Annotated[dict[str, LabelValue], Field(min_length=1, max_length=16)] = Field(
        description="The labels that they have.",
        json_schema_extra={"maxProperties": 16},
    )

    def as_selector(self) -> str:
        """Return it in the form of a label selector."""
        return ",".join(f"{name}={value}" for name, value in sorted(self.match_labels.items()))


class ScaledPool(Model):
    """One of the two pools."""

    rules = (
        Rule(
            message="minReplicas must not exceed maxReplicas",
            condition=~present("minReplicas") | at_most(field("minReplicas"), field("maxReplicas")),
            field="minReplicas",
        ),
    )
    scale_target_ref: ScaleTarget = Field(description="What is scaled.")
    min_replicas: int = Field(1, ge=1, le=1000, description="Never fewer replicas.")
    max_replicas: int = Field(ge=1, le=1000, description="Never more replicas.")
    gpus: int = Field(1, ge=0, le=1024, description="GPUs of one replica, on all of its nodes, for maxGPUs.")
    gpu_product: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        description="What the node label nvidia.com/gpu.product says of them, to estimate their speed.",
    )
    pod_selector: PodLabels | None = Field(
        None,
        description="The pods that serve metrics, one for each replica. Default: those that /scale reports.",
    )
    metrics_port: Port | None = Field(None, description="Their port. Default: metrics.port.")
    behavior: Behavior | None = Field(None, description="Damping.")

    @property
    def scale_down_window_s(self) -> int | None:
        """The declared scale-down window in seconds, or None."""
        scale_down = None if self.behavior is None else self.behavior.scale_down
        return None if scale_down is None else scale_down.stabilization_window_seconds


class PoolMetrics(Model):
    """The metrics of the pods, and their place."""

    rules = (
        Rule(
            message=f"routers must be set with {DEFAULT.name}, and with nothing else",
            condition=equal(present("routers"), equal(field("engine"), DEFAULT.name)),
            field="routers",
        ),
    )
    engine: MeteredEngine = Field(
        description=f"Whose metrics they are. {DEFAULT.name}: those of disagg's own workers, or of its adapters in "
        "front of other engines.",
    )
    port: Port | None = Field(None, description="Port of the pods. Default: the one that the engine has by default.")
    path: str = Field(
        "/metrics",
        max_length=253,
        pattern=r"^/[-._~A-Za-z0-9/]*$",
        description="Path of the page.",
    )
    routers: PodLabels | None = Field(None, description="disagg's routers in front of the pools, which count requests.")
    router_port: Port | None = Field(None, description="Port of the routers. Default: 8080.")


class ScalerScaling(JointScaling):
    """Scaling of both pools, as in a DisaggDeployment."""

    model: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        description="Name of the model, such as Llama-3.1-70B-Instruct, to estimate the speed of a replica.",
    )
    profile: WorkerSpeed | None = Field(
        None,
        description="How fast a replica is, until it is measured. Default: an estimate by model and gpuProduct.",
    )


def _differ(part: str) -> Expression:
    return differ(field(f"prefill.scaleTargetRef.{part}"), field(f"decode.scaleTargetRef.{part}"))


class DisaggScalerSpec(Model):
    """Two pools, their metrics and their objectives."""

    rules = (
        Rule(
            message="prefill and decode must have different targets",
            condition=_differ("name") | _differ("kind") | _differ("apiVersion"),
            field="decode",
        ),
    )
    mode: Literal["Shadow", "Active"] = Field(
        "Shadow",
        description="Shadow: recommend in status, metrics and records only. Active: scale the targets.",
    )
    objectives: Objectives = Field(Objectives(), description="What 99 % of the requests shall keep.")
    metrics: PoolMetrics = Field(description="What the pods of both pools serve.")
    observability: Observability = Field(Observability(), description="A Prometheus to read instead of the pods.")
    prefill: ScaledPool = Field(description="The pool that computes prompts.")
    decode: ScaledPool = Field(description="The pool that generates tokens.")
    scaling: ScalerScaling = Field(ScalerScaling(), description="How both pools are scaled.")

    def pool(self, role: str) -> ScaledPool:
        """Return the pool of a role."""
        return {"prefill": self.prefill, "decode": self.decode}[role]


class ScaledPoolStatus(Model):
    """One pool as it is, and as it should be."""

    name: str = Field(max_length=63, description="prefill or decode.")
    current: int = Field(0, description="Replicas that the target is set to.")
    ready: int = Field(0, description="Pods that can serve.")
    recommended: int = Field(0, description="Replicas that it should have.")
    set_by: str = Field("", max_length=512, description="Who else sets the target.")
    last_decision: LastDecision | None = Field(None, description="The last decision.")


class DisaggScalerStatus(Model):
    """The last findings and recommendations."""

    observed_generation: int = Field(0, description="The generation that the conditions speak of.")
    conditions: list[StatusCondition] = Field([], description="What is true now.", json_schema_extra=list_map("type"))
    prefill: str = Field("", max_length=64, description="Replicas, and those that are recommended if they differ.")
    decode: str = Field("", max_length=64, description="Replicas, and those that are recommended if they differ.")
    pools: list[ScaledPoolStatus] = Field([], description="The pools.", json_schema_extra=list_map("name"))


class DisaggScaler(Model):
    """Scales a prefill pool and a decode pool that disagg does not run."""

    api_version: str = "disagg.dev/v1alpha1"
    kind: Literal["DisaggScaler"] = "DisaggScaler"
    metadata: Metadata
    spec: DisaggScalerSpec = Field(description="What is scaled, by which metrics.")
    status: DisaggScalerStatus | None = Field(None, description="What is.")


def parse_scaler(obj: dict[str, Any]) -> DisaggScaler:
    """Return the DisaggScaler that a plain object holds, without its status.

    Raises InvalidResource, which names the first wrong field.
    """
    try:
        found = DisaggScaler.model_validate({k: v for k, v in obj.items() if k != "status"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidResource(f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}") from None
    for problem in refusals(found):
        raise InvalidResource(problem)
    return found
