"""PURE: The limits after which a router gives a worker up."""

from __future__ import annotations

from pydantic import Field

from disagg_operator.api.base import Model


class LivenessSpec(Model):
    """The limits by which routers judge the heartbeats of workers (docs/reliability.md)."""

    silence_seconds: float = Field(
        1.5,
        ge=1,
        le=60,
        description="After so long without a heartbeat, a worker's streams go on elsewhere.",
    )
    step_allowance: float = Field(
        3,
        ge=1,
        le=100,
        description="An engine's step may take so many times as long as announced before it began, and "
        "silenceSeconds more.",
    )
