"""PURE: The settings of a DisaggScaler, as settings of the policy."""

from __future__ import annotations

import re
from dataclasses import dataclass

from disagg_operator.api.disagg_scaler import ACTIVE, DisaggScaler, ScaledPool, parse_scaler
from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.api.v1alpha1 import InvalidResource
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.predictive import PoolLimits, Settings
from disagg_operator.autoscaling.scale_plan import ScalePlan, peak_of
from disagg_operator.autoscaling.signals.prometheus_access import Access, access_of
from disagg_operator.engines import BY_NAME
from disagg_operator.engines.contract import EngineMeter
from disagg_operator.performance.declared import declared_or_estimated
from disagg_operator.vocabulary import Obj
from disagg_wire.ports import ROUTER_PORT, WORKER_PORT
from disagg_wire.roles import DECODE, PREFILL, ROLES

_HOST = re.compile(r"https?://([^/:\[]+|\[[^\]]*\])")


class RefusedScaler(Exception):
    """Raised for a DisaggScaler that cannot be carried out; `reason` is that of the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ScalerPlan:
    """A DisaggScaler that was read, with the settings that follow from it."""

    resource: DisaggScaler
    scaling: ScalePlan
    """The settings of the policy."""
    prometheus: Access | None
    """The Prometheus to read instead of the pods, or None."""
    metrics: EngineMeter | None
    """How the engine's own metrics are read. None: the series of our workers and routers."""

    @property
    def active(self) -> bool:
        """Whether the targets are scaled, and not only advised."""
        return self.resource.spec.mode == ACTIVE

    def port(self, role: str) -> int:
        """Return the port at which the pods of a pool serve metrics."""
        spec = self.resource.spec
        usual = WORKER_PORT if self.metrics is None else self.metrics.port
        return spec.pool(role).metrics_port or spec.metrics.port or usual

    @property
    def router_port(self) -> int:
        """The port at which the routers serve metrics."""
        return self.resource.spec.metrics.router_port or ROUTER_PORT


def scaler_plan(obj: Obj, policy: NamespacePolicy) -> ScalerPlan:
    """Return the settings of a DisaggScaler. Raises RefusedScaler."""
    try:
        found = parse_scaler(obj)
    except InvalidResource as error:
        raise RefusedScaler("InvalidSpec", str(error)) from None
    prometheus = found.spec.observability.prometheus
    if prometheus is not None:
        host = _HOST.match(prometheus.url)
        if host is None or not policy.allows_prometheus(host[1]):
            words = "this host is none of those that this namespace may have asked"
            raise RefusedScaler("NotPermitted", f"spec.observability.prometheus.url: {words}")
    engine = BY_NAME[found.spec.metrics.engine]
    return ScalerPlan(found, _scaling(found), None if prometheus is None else access_of(prometheus), engine.meter)


def _scaling(scaler: DisaggScaler) -> ScalePlan:
    spec, shared = scaler.spec, scaler.spec.scaling
    limits = {role: PoolLimits(p.min_replicas, p.max_replicas, p.gpus) for role, p in _pools(scaler).items()}
    settings = Settings(
        profile=declared_or_estimated(
            shared.profile, shared.model or "", (spec.prefill.gpu_product, spec.prefill.gpus),
            (spec.decode.gpu_product, spec.decode.gpus),
        ),
        tpot_s=spec.objectives.tpot_seconds.p99,
        prefill=limits[PREFILL],
        decode=limits[DECODE],
        over_provisioning=shared.over_provisioning,
        gpu_budget=shared.max_gpus,
        ratio=None if shared.ratio is None else (shared.ratio.min, shared.ratio.max),
        peaks=tuple(peak_of(peak) for peak in shared.schedule),
    )  # fmt: skip
    return ScalePlan(
        policies={r: PoolRules(p.min_replicas, p.max_replicas, 1.0) for r, p in _pools(scaler).items()},
        settings=settings,
        down_windows_s={
            r: float(p.scale_down_window_s) for r, p in _pools(scaler).items() if p.scale_down_window_s is not None
        },
        dry_run=spec.mode != ACTIVE,
    )


def _pools(scaler: DisaggScaler) -> dict[str, ScaledPool]:
    return {role: scaler.spec.pool(role) for role in ROLES}
