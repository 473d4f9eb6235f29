"""PURE: The autoscaler: `signals` are read, `policy` decides, `records` keep, `loop` connects them.

The predictive policy can be used alone: the names exported here need only the standard library
(docs/autoscaling.md).
"""

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings, State, step
from disagg_operator.autoscaling.records.saved_state import from_json, to_json
from disagg_operator.performance.profile import Profile

__all__ = [
    "DecodeSignals", "Observation", "Peak", "Pods", "PoolLimits", "PrefillSignals", "Profile", "Settings", "State",
    "Targets", "from_json", "step", "to_json",
]  # fmt: skip
