"""PURE: The status of a DisaggDeployment, which consists of conditions and has no phase."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from disagg_operator.api.base import Model, list_map
from disagg_operator.vocabulary import MOST_OF_A_REQUEST


class StatusCondition(Model):
    """As metav1.Condition."""

    type: str = Field(max_length=63, description="What is meant, such as Ready.")
    status: str = Field(pattern="^(True|False|Unknown)$", description="True, False or Unknown.")
    reason: str = Field("", max_length=128, description="One word, for programs.")
    message: str = Field(
        "", max_length=2048, description="For people: a sentence, and the last lines of a log where one says why."
    )
    last_transition_time: str = Field("", max_length=64, description="When status last changed.")
    observed_generation: int = Field(0, description="The generation this was seen at.")


class LastDecision(Model):
    """The last decision of the autoscaler for a pool, and its reason."""

    time: str = Field("", max_length=64, description="When.")
    signal: str = Field("", max_length=64, description="What was measured.")
    value: float = Field(0, description="Its value over the pool.")
    target: float = Field(0, description="The target per worker (policy queue).")
    from_: int = Field(0, alias="from", description="Workers before.")
    to: int = Field(0, description="Workers wanted.")
    reason: str = Field("", max_length=64, description="Why, in one word, for programs.")
    message: str = Field("", max_length=512, description="Why, in a sentence, for people.")
    numbers: dict[str, float] = Field(
        {},
        max_length=24,
        description="What it was decided by; docs/autoscaling.md has the names.",
    )
    dry_run: bool = Field(False, description="Nothing was changed.")


class PoolScaling(Model):
    """How the scaling of a pool stands now."""

    time: str = Field("", max_length=64, description="Since when.")
    needed: int = Field(0, description="Workers of least cost for the expected work, within the pool's bounds.")
    wanted: int = Field(0, description="Workers that the autoscaler sets or keeps.")
    reason: str = Field("", max_length=64, description="Why as many as these, in one word, for programs.")
    limited_by: str = Field(
        "",
        max_length=64,
        description="The limit at which the pool stands: MinReplicas, MaxReplicas, GPUBudget, Ratio, ClusterCapacity.",
    )
    message: str = Field("", max_length=512, description="Why, in a sentence, for people.")


class PoolStatus(Model):
    """One pool as it is."""

    name: str = Field(max_length=63, description="prefill or decode.")
    desired: int = Field(0, description="Workers wanted.")
    current: int = Field(0, description="Workers that exist.")
    ready: int = Field(0, description="Workers that can serve.")
    updated: int = Field(0, description="Workers of the newest revision.")
    selector: str = Field("", max_length=512, description="Label selector of its pods.")
    replica_owner: str = Field(
        "",
        max_length=63,
        description="Who sets the number: autoscaler, spec, scaleToZero, or another writer of /scale.",
    )
    last_decision: LastDecision | None = Field(None, description="The autoscaler's last decision.")
    scaling: PoolScaling | None = Field(None, description="How its scaling stands, if the operator scales it.")


class Transports(Model):
    """Workers by the transport they really use."""

    rdma: int = Field(0, description="Over RDMA.")
    nvlink: int = Field(0, description="Over NVLink.")
    shm: int = Field(0, description="Over shared memory.")
    tcp: int = Field(0, description="Over TCP.")


class Pairs(Model):
    """Prefill-decode pairs, by the router's handshakes."""

    expected: int = Field(0, description="Pairs that should work.")
    healthy: int = Field(0, description="Pairs that moved a KV block.")
    transport: Transports = Field(Transports(), description="Workers by transport.")
    uses: str = Field(
        "",
        max_length=128,
        description="Transports in use, fastest first: rdma, nvlink, shm or tcp, separated by commas.",
    )
    evidence: str = Field(
        "",
        max_length=32,
        description="Proved: counters of the engine or of devices show the transport. Configured: it is only set.",
    )
    interface: str = Field("", max_length=256, description="Network interfaces in use, separated by commas.")


class Revision(Model):
    """Hashes of the rendered pods."""

    current: str = Field("", max_length=64, description="What runs.")
    update: str = Field("", max_length=64, description="What is rolled out.")


class RolloutStatus(Model):
    """What is remembered of the rollout in progress."""

    target: str = Field("", max_length=64, description="The revision that is rolled out.")
    steps: int = Field(0, description="Steps made: workers that got a node or are ready, less old ones that are left.")
    last_progress_time: str = Field("", max_length=64, description="When the last of them was made.")
    held: dict[str, int] = Field(
        {},
        max_length=8,
        description="The most devices that the workers held, by resource.",
    )
    full: list[Annotated[str, Field(max_length=128)]] = Field(
        [],
        max_length=8,
        description="The resources of which the cluster has no more than that.",
    )


class Status(Model):
    """The state that the operator has found."""

    model_config = ConfigDict(extra="allow")
    observed_generation: int = Field(0, description="The generation that the conditions speak of.")
    conditions: list[StatusCondition] = Field([], description="What is true now.", json_schema_extra=list_map("type"))
    url: str = Field("", max_length=1024, description="Base URL of the OpenAI API inside the cluster.")
    model: str = Field("", max_length=256, description="The served model's name.")
    prefill: str = Field("", max_length=32, description="ready/desired prefill workers.")
    decode: str = Field("", max_length=32, description="ready/desired decode workers.")
    revision: Revision = Field(Revision(), description="Hashes of the rendered pods.")
    rollout: RolloutStatus | None = Field(None, description="The rollout in progress.")
    pools: list[PoolStatus] = Field([], description="The pools as they are.", json_schema_extra=list_map("name"))
    pairs: Pairs = Field(Pairs(), description="Prefill-decode pairs.")
    runtime_request: str = Field(
        "",
        max_length=MOST_OF_A_REQUEST,
        description="The last value of disagg.dev/update-runtime that was carried out.",
    )
