"""PURE: a DisaggDeployment as the control loops need it: parsed, checked beyond what its schema
can, and with defaults filled in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, PoolSpec, parse
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.scale_plan import ScalePlan, settings_of
from disagg_operator.autoscaling.signals.prometheus_access import access_of
from disagg_operator.controller.replicas import Declared
from disagg_operator.desired.names import network_name
from disagg_operator.performance.declared import gpus_of
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import ROLES

# Requests per worker when none is declared. A prefill worker batches what waits, so a short queue
# is healthy; a decode worker is well used at half of its default of 64 running sequences.
DEFAULT_TARGETS = {"prefill": 4.0, "decode": 32.0}
DEFAULT_DOWN_WINDOW_S = 300.0
# Ranks without GPUs share the CPU: good for trying the wiring, and nothing gets faster.
_MOST_CPU_RANKS = 4


class Refused(Exception):
    """The resource can't be carried out.

    `reason` for the condition; the message names the field.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AcceptedDeployment:
    """`attachment`: (namespace, name) of the NetworkAttachmentDefinition that the pods name.

    `rdma`: the extended resource, and the most of it that a worker asks for.
    """

    resource: DisaggDeployment
    declared: Mapping[str, Declared]
    scaling: ScalePlan
    attachment: tuple[str, str] | None
    rdma: tuple[str, int] | None
    interface: str | None


def accept(obj: Obj) -> AcceptedDeployment:
    """Parse and check. Raises Refused."""
    try:
        resource = parse(obj)
    except InvalidResource as error:
        raise Refused("InvalidSpec", str(error)) from None
    spec, network = resource.spec, resource.spec.kv_transfer.network
    for role in ROLES:
        _check_pool(role, spec.pool(role))
    if spec.scaling.max_gpus is not None and not all(gpus_of(spec.pool(role)) for role in ROLES):
        raise Refused("InvalidSpec", "spec.scaling.maxGPUs: both pools must have an accelerator")
    return AcceptedDeployment(
        resource=resource,
        declared={role: _declared(spec.pool(role)) for role in ROLES},
        scaling=ScalePlan(
            policies={role: rules for role in ROLES if (rules := _policy(role, spec.pool(role))) is not None},
            settings=settings_of(resource),
            predictive=spec.predictive,
            down_windows_s=_down_windows_s(resource),
            prometheus=None if spec.observability.prometheus is None else access_of(spec.observability.prometheus),
            dry_run=spec.scaling.dry_run,
            suspended=spec.suspend,
        ),
        attachment=_attachment(resource),
        rdma=_rdma(resource),
        interface=None if network is None else network.interface,
    )


def _down_windows_s(resource: DisaggDeployment) -> dict[str, float]:
    """Those that are declared."""
    bounds = {role: resource.spec.pool(role).autoscaling for role in ROLES}
    return {
        role: float(b.scale_down_window_s)
        for role, b in bounds.items()
        if b is not None and b.scale_down_window_s is not None
    }


def _rdma(resource: DisaggDeployment) -> tuple[str, int] | None:
    """Where it is what KV is to go over."""
    kv = resource.spec.kv_transfer
    if kv.transport != "rdma" or kv.network is None or kv.network.rdma_resource is None:
        return None
    device = kv.network.rdma_resource
    return device.name, max(device.devices(gpus_of(resource.spec.pool(role))) for role in ROLES)


def _attachment(resource: DisaggDeployment) -> tuple[str, str] | None:
    """The NetworkAttachmentDefinition of the pods: referred to, or the one that is rendered."""
    network = resource.spec.kv_transfer.network
    if network is None:
        return None
    own = resource.metadata.namespace
    if network.attachment_ref is not None:
        return network.attachment_ref.namespace or own, network.attachment_ref.name
    return own, network_name(resource.metadata.name)


def scale_plan(obj: Obj) -> ScalePlan | None:
    """The part for the scrape loop; None for a resource that is refused (its pools are then left
    alone).
    """
    try:
        return accept(obj).scaling
    except Refused:
        return None


def _check_pool(role: str, pool: PoolSpec) -> None:
    """Refuse what neither the schema nor a rule of the API knows."""
    ranks, gpus = pool.parallelism.tensor, 0 if pool.accelerator is None else pool.accelerator.count
    if ranks > (gpus or _MOST_CPU_RANKS):
        limit = f"accelerator.count is {gpus}" if gpus else f"without GPUs at most {_MOST_CPU_RANKS} are supported"
        raise Refused("UnsupportedParallelism", f"spec.{role}.parallelism.tensor: {ranks} ranks, but {limit}")
    # The schema lets "0" and "0.1" pass.
    if pool.kv_cache_size is not None and quantity_bytes(pool.kv_cache_size) == 0:
        raise Refused("InvalidSpec", f"spec.{role}.kvCacheSize: must be above 0")


def _declared(pool: PoolSpec) -> Declared:
    if pool.autoscaling is not None:
        return Declared(bounds=(pool.autoscaling.min_replicas, pool.autoscaling.max_replicas))
    return Declared(replicas=pool.initial_replicas)


def _policy(role: str, pool: PoolSpec) -> PoolRules | None:
    bounds = pool.autoscaling
    if bounds is None:
        return None
    return PoolRules(
        min_replicas=bounds.min_replicas,
        max_replicas=bounds.max_replicas,
        target=bounds.queue_target(DEFAULT_TARGETS[role]),
        down_window_s=DEFAULT_DOWN_WINDOW_S
        if bounds.scale_down_window_s is None
        else float(bounds.scale_down_window_s),
    )
