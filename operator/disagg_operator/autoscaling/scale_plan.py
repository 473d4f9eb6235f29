"""PURE: what a resource says of scaling, as the predictive policy's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.v1alpha1 import PoolSpec
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings
from disagg_operator.autoscaling.signals.prometheus_access import Access
from disagg_operator.performance.declared import gpus_of, profile_of

# Moving a worker between the pools: drain what it runs, change, relabel. Until it has been
# measured.
ROLE_FLIP_S = 5.0


def settings_of(dd: DisaggDeployment) -> Settings:
    """Bounds of a pool that isn't autoscaled are set anew with each observation."""
    spec = dd.spec.scaling
    return Settings(
        profile=profile_of(dd),
        tpot_s=dd.spec.objectives.tpot_seconds.p99,
        prefill=_limits(dd.spec.prefill),
        decode=_limits(dd.spec.decode),
        over_provisioning=spec.over_provisioning,
        gpu_budget=spec.max_gpus,
        ratio=None if spec.ratio is None else (spec.ratio.min, spec.ratio.max),
        peaks=tuple(Peak(_seconds(p.from_), _seconds(p.to), p.prefill, p.decode) for p in spec.schedule),
        role_flip_s=ROLE_FLIP_S if spec.role_flip else None,
    )


def _limits(pool: PoolSpec) -> PoolLimits:
    if pool.autoscaling is None:
        return PoolLimits(gpus=gpus_of(pool))
    return PoolLimits(pool.autoscaling.min_replicas, pool.autoscaling.max_replicas, gpus_of(pool))


def _seconds(time_of_day: str) -> float:
    hours, _, minutes = time_of_day.partition(":")
    return 3600.0 * int(hours) + 60.0 * int(minutes)


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What a resource says of scaling.

    `policies`: the pools that the operator scales, as the policy queue has them; `settings`: as the
    predictive policy has them; `predictive`: whether that is the one; `down_windows_s`: declared
    damping, by pool.
    """

    policies: Mapping[str, PoolRules]
    settings: Settings
    predictive: bool = True
    down_windows_s: Mapping[str, float] = field(default_factory=dict)
    prometheus: Access | None = None
    dry_run: bool = False
    suspended: bool = False
