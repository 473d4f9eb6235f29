"""PURE: The decision of a policy for one pool, and the rules that every policy keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

METRICS_UNAVAILABLE = "MetricsUnavailable"
WITHIN_TOLERANCE = "WithinTolerance"
STABILIZING = "Stabilizing"
AT_TARGET = "AtTarget"
SCALE_UP = "QueueAboveTarget"
SCALE_DOWN = "QueueBelowTarget"
BELOW_MINIMUM = "BelowMinimum"
ABOVE_MAXIMUM = "AboveMaximum"
AT_LIMIT = "AtLimit"

# The limits at which a pool can stand.
MIN_REPLICAS, MAX_REPLICAS = "MinReplicas", "MaxReplicas"
GPU_BUDGET, RATIO, CLUSTER_CAPACITY = "GPUBudget", "Ratio", "ClusterCapacity"


def at_bound(n: int, least: int, most: int) -> str:
    """Return the bound at which a pool of `n` workers stands, or nothing.

    A pool of one permitted size has no bounds to stand at.
    """
    return "" if least == most else {least: MIN_REPLICAS, most: MAX_REPLICAS}.get(n, "")


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for one pool; `to == current` means that the replicas are held."""

    current: int
    """The replicas that the pool was set to when the decision was made."""
    to: int
    """The replicas that the pool should be set to."""
    reason: str
    """The reason, as a CamelCase word for status and Events."""
    signal: str
    """The name of the signal that the policy follows."""
    value: float | None
    """The signal: requests per replica or the forecast in workers; None if it is unknown."""
    target: float
    """The target in requests per replica, or 0 if the policy has none."""
    message: str = ""
    """The reason in a sentence."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """The numbers that the decision is based on, by name."""
    unmet: str | None = None
    """Why the pool's objective cannot be met, and what can be; empty if it can, None if unknown."""
    limit: str = ""
    """The limit at which the pool stands, as a CamelCase word; empty if at none."""

    @property
    def blind(self) -> bool:
        """Whether the replicas are held because metrics are missing."""
        return self.reason == METRICS_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class PoolRules:
    """The declared scaling rules of one pool."""

    min_replicas: int
    """The fewest replicas."""
    max_replicas: int
    """The most replicas."""
    target: float
    """Requests per replica, waiting and running together."""
    up_window_s: float = 0.0
    """Seconds for which a recommendation to scale up must persist."""
    down_window_s: float = 300.0
    """Seconds of which the highest recommendation limits scaling down."""
    tolerance: float = 0.1
    """The relative deviation from the target that changes nothing."""
    smoothing_s: float = 10.0
    """Seconds over which the number of requests is averaged."""
