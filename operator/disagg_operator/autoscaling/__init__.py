"""PURE: From signals to replicas: `signals` are the doors, `policy` decides, `loop` ties them
together.

The predictive policy can be used alone: what is named here needs the standard library and nothing
else (docs/autoscaling.md).
"""

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals, Targets
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings, State, step
from disagg_operator.autoscaling.records.saved_state import from_json, to_json
from disagg_operator.performance.profile import Profile

__all__ = [
    "DecodeSignals", "Observation", "Peak", "Pods", "PoolLimits", "PrefillSignals", "Profile", "Settings", "State", "Targets", "from_json",
    "step", "to_json",
]  # fmt: skip
