"""PURE: The models of the fields that control how the pools are scaled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from disagg_operator.api.base import DnsLabel, Model, PositiveNumber, list_map
from disagg_operator.api.expressions import at_most, field, present
from disagg_operator.api.rules import Rule

Positive = Annotated[float, Field(gt=0, le=3600)]
Small = Annotated[float, Field(ge=0, le=3600)]
TimeOfDay = Annotated[str, Field(max_length=5, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]


class MetricTarget(Model):
    """The aim of the autoscaler."""

    average_value: PositiveNumber = Field(description="Requests per worker, waiting and running.")


class Metric(Model):
    """One autoscaling signal."""

    type: Literal["QueueDepth"] = Field(
        "QueueDepth",
        description="QueueDepth: requests waiting for or running in the pool.",
    )
    target: MetricTarget = Field(description="The target per worker.")


class ScalingRules(Model):
    """Damping of one direction."""

    stabilization_window_seconds: int = Field(
        ge=0,
        le=3600,
        description="Scale down only to the highest demand of this long.",
    )


class Behavior(Model):
    """Damping, as in autoscaling/v2."""

    scale_down: ScalingRules | None = Field(
        None,
        description="Damping of scaling down. Default: 300 s for queue; for predictive what a needless start would "
        "cost.",
    )


class Autoscaling(Model):
    """Scale this pool by its own load; spec.scaling says how."""

    rules = (
        Rule(
            message="minReplicas must not exceed maxReplicas",
            condition=~present("minReplicas") | at_most(field("minReplicas"), field("maxReplicas")),
            field="minReplicas",
        ),
    )
    min_replicas: int = Field(1, ge=1, le=1000, description="Never fewer workers.")
    max_replicas: int = Field(ge=1, le=1000, description="Never more workers.")
    metrics: list[Metric] = Field(
        [],
        max_length=1,
        description="Target of the policy queue. Default: 4 for prefill, 32 for decode.",
    )
    behavior: Behavior | None = Field(None, description="Damping.")

    def queue_target(self, default: float) -> float:
        """Return the declared target of the policy queue, or `default`."""
        return float(self.metrics[0].target.average_value) if self.metrics else default

    @property
    def scale_down_window_s(self) -> int | None:
        """The declared scale-down window in seconds, or None."""
        scale_down = None if self.behavior is None else self.behavior.scale_down
        return None if scale_down is None else scale_down.stabilization_window_seconds


class TtftPercentile(Model):
    """The time that 99 of 100 requests shall keep."""

    p99: Positive = Field(1.0, description="Seconds.")


class TpotPercentile(Model):
    """The time that 99 of 100 requests shall keep."""

    p99: Positive = Field(0.06, description="Seconds.")


class Objectives(Model):
    """Service level objectives; 99 % of the requests shall keep each."""

    ttft_seconds: TtftPercentile = Field(
        TtftPercentile(),
        description="Arrival to first token; a prompt that alone takes long may take 5 times that. Default: 1 s.",
    )
    tpot_seconds: TpotPercentile = Field(
        TpotPercentile(),
        description="Time per output token after the first, waiting for decode included. Default: 0.06 s.",
    )


class Ratio(Model):
    """Decode workers per prefill worker."""

    rules = (
        Rule(
            message="min must not exceed max",
            condition=~present("min") | ~present("max") | at_most(field("min"), field("max")),
            field="min",
        ),
    )
    min: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0,
        description="Never fewer decode workers per prefill worker.",
    )
    max: Annotated[float, Field(gt=0, le=1000)] = Field(
        1000.0,
        description="Never more decode workers per prefill worker.",
    )


class ScheduledPeak(Model):
    """A time of day when load is known to come. `from` later than `to`: over midnight."""

    name: DnsLabel = Field(description="What it is called.")
    from_: TimeOfDay = Field(
        alias="from",
        description="HH:MM, UTC: workers are ready from then on if they start so fast.",
    )
    to: TimeOfDay = Field(description="HH:MM, UTC.")
    prefill: int = Field(0, ge=0, le=1000, description="At least so many prefill workers.")
    decode: int = Field(0, ge=0, le=1000, description="At least so many decode workers.")


class PrefillSpeed(Model):
    """The time of a batch of prompts, with n uncached tokens each.

    It takes base + perToken * sum(n) + perToken2 * sum(n * n) seconds.
    """

    base: Small = Field(description="Seconds of a batch, whatever is in it.")
    per_token: Small = Field(description="Seconds per token.")
    per_token2: Small = Field(0.0, alias="perToken2", description="Seconds per square of a prompt's tokens: attention.")


class DecodeSpeed(Model):
    """The time of a step over B sequences that hold K tokens of KV.

    It takes base + perSequence * B + perKvToken * K seconds.
    """

    base: Positive = Field(description="Seconds of a step, whatever is in it.")
    per_sequence: Small = Field(description="Seconds per sequence.")
    per_kv_token: Small = Field(0.0, description="Seconds per token of KV.")
    kv_tokens: int = Field(100_000, ge=16, le=1_000_000_000, description="Tokens that one worker's KV cache holds.")


class WorkerSpeed(Model):
    """The speed of one worker of each pool, as `disagg profile` measures it.

    It is a start: the reports of the workers correct it.
    """

    prefill: PrefillSpeed = Field(description="Prefill of a batch.")
    decode: DecodeSpeed = Field(description="One decode step.")


class ScaleToZero(Model):
    """Both pools go to 0 together while nobody asks, and come back together for the next request.

    The routers stay, list the models and hold requests meanwhile.
    """

    idle_seconds: int = Field(
        600,
        ge=1,
        le=604_800,
        description="How long no request may have run or waited, counted from the end of the last one.",
    )
    hold_seconds: int = Field(
        300,
        ge=0,
        le=3600,
        description="How long a request may wait for workers to come; 503 with Retry-After is the answer after that, "
        "and to what is beyond router.queue.maxDepth.",
    )


class JointScaling(Model):
    """What is said of both pools together, whoever runs them."""

    over_provisioning: Annotated[float, Field(ge=0.5, le=10)] = Field(
        1.0,
        description="Expect so many times the work that is forecast, such as 2 for twice the workers.",
    )
    max_gpus: int | None = Field(
        None,
        alias="maxGPUs",
        ge=1,
        le=1_000_000,
        description="GPUs of both pools together. Default: no limit.",
    )
    ratio: Ratio | None = Field(None, description="Decode workers per prefill worker. Default: each pool on its own.")
    schedule: list[ScheduledPeak] = Field(
        [],
        max_length=32,
        description="Known peaks, each day.",
        json_schema_extra=list_map("name"),
    )


class ScalingSpec(JointScaling):
    """Scaling of both pools. The policy `queue` has none of what is said of both together."""

    policy: Literal["predictive", "queue"] | None = Field(
        None,
        description="predictive: by objectives; queue: requests per worker. Default: queue where a pool has "
        "metrics, else predictive.",
    )
    dry_run: bool = Field(False, description="Compute and report decisions, change nothing.")
    role_flip: bool = Field(
        False,
        description="predictive: move a running worker to the other pool where that is faster than starting one. "
        "Needs equal pools.",
    )
    scale_to_zero: ScaleToZero | None = Field(
        None,
        description="Take both pools to 0 while nobody asks; also pools without autoscaling. Default: never.",
    )
    profile: WorkerSpeed | None = Field(
        None,
        description="How fast a worker is, until it is measured. Default: by accelerator and model.",
    )
