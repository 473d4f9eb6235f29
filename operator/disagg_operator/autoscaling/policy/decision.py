"""PURE: What a policy decides for one pool, the reasons that it can give, and the rules of a pool
that every policy keeps.
"""

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


@dataclass(frozen=True, slots=True)
class Decision:
    """`to == current` means hold.

    `value`: the smoothed demand per replica, None when unknown. `message`: why, in a sentence.
    """

    current: int
    to: int
    reason: str
    signal: str
    value: float | None
    target: float
    message: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def blind(self) -> bool:
        """Held because data is missing."""
        return self.reason == METRICS_UNAVAILABLE


@dataclass(frozen=True, slots=True)
class PoolRules:
    """What the user declared. `target`: requests per replica (waiting and running together)."""

    min_replicas: int
    max_replicas: int
    target: float
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    tolerance: float = 0.1
    smoothing_s: float = 10.0
