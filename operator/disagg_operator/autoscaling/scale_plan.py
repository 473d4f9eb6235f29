"""PURE: The scaling settings of a resource, as settings of the policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.scaling import ScheduledPeak
from disagg_operator.api.v1alpha1 import PoolSpec
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings
from disagg_operator.autoscaling.signals.prometheus_access import Access
from disagg_operator.performance.declared import gpus_of, profile_of

# Seconds of a role flip, until they have been measured: the worker drains, changes its role, and is
# relabelled.
ROLE_FLIP_S = 5.0


def settings_of(dd: DisaggDeployment) -> Settings:
    """Return the settings of the predictive policy.

    The bounds of a pool that is not autoscaled are set with each observation.
    """
    spec = dd.spec.scaling
    return Settings(
        profile=profile_of(dd),
        tpot_s=dd.spec.objectives.tpot_seconds.p99,
        prefill=_limits(dd.spec.prefill),
        decode=_limits(dd.spec.decode),
        over_provisioning=spec.over_provisioning,
        gpu_budget=spec.max_gpus,
        ratio=None if spec.ratio is None else (spec.ratio.min, spec.ratio.max),
        peaks=tuple(peak_of(peak) for peak in spec.schedule),
        role_flip_s=ROLE_FLIP_S if spec.role_flip else None,
    )


def peak_of(declared: ScheduledPeak) -> Peak:
    """Return a declared peak as the policy knows it."""
    return Peak(_seconds(declared.from_), _seconds(declared.to), declared.prefill, declared.decode)


def _limits(pool: PoolSpec) -> PoolLimits:
    if pool.autoscaling is None:
        return PoolLimits(gpus=gpus_of(pool))
    return PoolLimits(pool.autoscaling.min_replicas, pool.autoscaling.max_replicas, gpus_of(pool))


def _seconds(time_of_day: str) -> float:
    hours, _, minutes = time_of_day.partition(":")
    return 3600.0 * int(hours) + 60.0 * int(minutes)


@dataclass(frozen=True, slots=True)
class ZeroPlan:
    """The settings of a resource that may be scaled to zero."""

    idle_s: float
    """The seconds without a request after which both pools go to zero."""
    sizes: Mapping[str, int]
    """The sizes with which autoscaled pools come back, by pool."""


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """The scaling settings of a resource."""

    policies: Mapping[str, PoolRules]
    """The rules of each pool that the operator scales, by pool."""
    settings: Settings
    """The settings of the predictive policy."""
    predictive: bool = True
    """Whether the policy is `predictive`, as opposed to `queue`."""
    down_windows_s: Mapping[str, float] = field(default_factory=dict)
    """The declared scale-down windows in seconds, by pool."""
    prometheus: Access | None = None
    """The Prometheus to read, or None to ask the pods."""
    dry_run: bool = False
    """Whether decisions are only shown and not carried out."""
    suspended: bool = False
    """Whether the resource is suspended."""
    zero: ZeroPlan | None = None
    """How it is scaled to zero, or None if it never is."""
