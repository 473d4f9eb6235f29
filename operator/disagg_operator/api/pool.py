"""PURE: DisaggPool, the child that carries /scale for one pool, one for each role."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from disagg_operator.api.base import Model, Replicas
from disagg_operator.api.v1alpha1 import Metadata


class DisaggPoolSpec(Model):
    """The role of the pool, and its number of workers."""

    deployment: str = Field(max_length=63, description="The DisaggDeployment that this pool belongs to.")
    role: Literal["prefill", "decode"] = Field(description="What its workers do.")
    replicas: Replicas = Field(
        1,
        description="Workers wanted. Written by the autoscaler, or by you (`kubectl scale`, an HPA).",
    )


class DisaggPoolStatus(Model):
    """The pool as it is."""

    replicas: int = Field(0, description="Workers that exist.")
    ready_replicas: int = Field(0, description="Workers that can serve.")
    selector: str = Field("", max_length=512, description="Label selector of its pods, for an HPA.")
    observed_generation: int = Field(0, description="The generation that this speaks of.")


class DisaggPool(Model):
    """One pool of a DisaggDeployment; `kubectl scale dp/NAME-decode --replicas=3` works when the
    pool has no autoscaling.
    """

    api_version: str = "disagg.dev/v1alpha1"
    kind: Literal["DisaggPool"] = "DisaggPool"
    metadata: Metadata
    spec: DisaggPoolSpec = Field(description="Which pool, and how many workers.")
    status: DisaggPoolStatus | None = Field(None, description="The pool as it is.")
