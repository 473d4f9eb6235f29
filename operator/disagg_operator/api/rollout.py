"""PURE: The model of spec.rollout: how workers of a new revision replace those of the old one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from disagg_operator.api.base import Model, int_or_string
from disagg_operator.api.expressions import differ, field, present
from disagg_operator.api.rules import Rule
from disagg_operator.api.scaling import Objectives

_AMOUNT = r"^(1000|[0-9]{1,3}|[0-9]{1,3}%)$"


if TYPE_CHECKING:
    Amount = str | int
else:
    Amount = int_or_string(_AMOUNT, 1000, 0, "must be a number from 0 to 1000 or a percentage such as 25%")


def amount_of(value: str | int, size: int, *, up: bool) -> int:
    """Return a number of workers, of which `value` may be a percentage of `size`."""
    text = str(value)
    if not text.endswith("%"):
        return int(text)
    share = int(text[:-1]) * size / 100
    return math.ceil(share) if up else math.floor(share)


class CanarySpec(Model):
    """How a new revision is tried before it replaces the old one."""

    weight: int = Field(
        10,
        ge=1,
        le=50,
        description="Per cent of the requests that the new workers get, whatever the numbers of ready workers are.",
    )
    min_requests: int = Field(
        100,
        ge=10,
        le=100_000,
        description="Requests of each revision, in the same minutes, by which they are compared. If the new one "
        "keeps the objectives less often, by more than chance explains, the old one is restored; if not, the "
        "rollout goes on.",
    )
    max_duration_seconds: int = Field(
        3600,
        ge=60,
        le=86_400,
        description="With fewer requests by then, the rollout waits for a person (CanaryInconclusive).",
    )
    analysis: Objectives | None = Field(
        None,
        description="The objectives by which they are compared. Default: spec.objectives.",
    )


class RolloutSpec(Model):
    """How a change of the workers is rolled out."""

    rules = (
        Rule(
            message="a canary needs the strategy RollingUpdate",
            condition=~present("canary") | ~present("strategy") | differ(field("strategy"), "Recreate"),
            field="canary",
        ),
    )
    strategy: Literal["RollingUpdate", "Recreate"] = Field(
        "RollingUpdate",
        description="RollingUpdate: a new pair first, then both pools step by step. Recreate: all old workers end "
        "before new ones start; the routers hold the requests meanwhile.",
    )
    max_surge: Amount = Field(
        1,
        description="Workers of each pool beyond its size while it rolls, such as 1 or 25%. 0: old workers make room.",
    )
    max_unavailable: Amount = Field(
        0,
        description="Workers of each pool that may be missing while it rolls. Where there is no room for a new pair, "
        "as many are missing as make room.",
    )
    max_surge_gpus: int | None = Field(
        None,
        alias="maxSurgeGPUs",
        ge=0,
        le=1_000_000,
        description="GPUs of both pools beyond those of their sizes. Default: as maxSurge needs.",
    )
    progress_deadline_seconds: int = Field(
        7800,
        ge=1,
        le=604_800,
        description="Without a step forward for so long, a rollout counts as stalled.",
    )
    auto_rollback: bool = Field(False, description="Go back to the last revision when a rollout has stalled.")
    paused: bool = Field(False, description="Take no step; pools still follow their sizes.")
    canary: CanarySpec | None = Field(
        None,
        description="Try a new revision with a part of the requests first. Default: none.",
    )
    revision_history_limit: int = Field(10, ge=1, le=100, description="Old revisions that are kept for undo.")
