"""PURE: Whether the numbers of a resource fit together: bounds, GPUs, ratio and devices.

Nothing here needs the cluster. What can never be met is refused before any GPU is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.network import MOST_NAME_CHARS, Attachment
from disagg_operator.api.v1alpha1 import PoolSpec
from disagg_operator.api.violation import Violation
from disagg_operator.desired.accelerators import NVIDIA, maker_of
from disagg_operator.desired.attachments import device_count
from disagg_operator.performance.declared import gpus_of
from disagg_wire.engines import SHM
from disagg_wire.rails import rail_interfaces
from disagg_wire.roles import DECODE, PREFILL, ROLES

UNSUPPORTED_PARALLELISM = "UnsupportedParallelism"
NEVER_READY = "NeverReady"
INFEASIBLE = "Infeasible"
IDLE_ACCELERATORS = "IdleAccelerators"
PRODUCT_LABEL = "ProductLabel"
ONE_POOL_AT_ZERO = "OnePoolAtZero"


@dataclass(frozen=True, slots=True)
class _Bounds:
    least: int
    most: int
    gpus: int


def infeasible(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield what can't be met, with the field to blame."""
    for role in ROLES:
        accelerator = dd.spec.pool(role).accelerator
        if accelerator is not None and accelerator.product is not None and not accelerator.count:
            words = "needs a GPU: set count above 0, or use podTemplate.spec.nodeSelector"
            yield Violation(f"spec.{role}.accelerator.product", words)
    yield from _devices(dd)
    yield from _claims(dd)
    yield from _host_network(dd)
    yield from _root_in_namespace(dd)
    yield from _transport(dd)
    bounds = {role: _bounds(dd.spec.pool(role)) for role in ROLES}
    if bounds[PREFILL].most and bounds[DECODE].most:
        yield from _numbers(dd, bounds[PREFILL], bounds[DECODE])


def uneven(counts: Mapping[str, int]) -> Iterator[Violation]:
    """Yield a pool that has been scaled to 0 alone. `counts` are the replicas wanted, by role."""
    for role, other in ((PREFILL, DECODE), (DECODE, PREFILL)):
        if counts[role] == 0 and counts[other] > 0:
            words = (
                f"{role} is scaled to 0 but {other} to {counts[other]}: no pair could serve a request, so one {role} "
                f"worker stays until both are 0"
            )
            yield Violation(f"spec.{role}.replicas", words, ONE_POOL_AT_ZERO)


def questionable(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield what is carried out, but hardly meant."""
    for role in ROLES:
        pool = dd.spec.pool(role)
        gpus, ranks = 0 if pool.accelerator is None else pool.accelerator.count, pool.parallelism.tensor
        parallel = any("parallel" in word for word in (*dd.spec.engine.args, *pool.args))
        if gpus > ranks and not parallel:
            path = f"spec.{role}.accelerator.count"
            yield Violation(path, f"{gpus} GPUs, but parallelism.tensor uses {ranks}", IDLE_ACCELERATORS)
        accelerator = pool.accelerator
        guessed = accelerator is not None and accelerator.product and accelerator.product_label is None
        if accelerator is not None and guessed and maker_of(accelerator.resource_name) is None:
            words = f"nodes with {accelerator.resource_name} may lack the label {NVIDIA.product_label}"
            yield Violation(f"spec.{role}.accelerator.product", f"{words}: set productLabel", PRODUCT_LABEL)


def _claims(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield RDMA devices that come by a claim in one place alone: in a pool or in the network."""
    network = dd.spec.kv_transfer.network
    wanted = network is not None and network.claims_devices
    for role in ROLES:
        claim = dd.spec.pool(role).device_claim
        path = f"spec.{role}.deviceClaim" if claim is None else f"spec.{role}.deviceClaim.rdmaDevices"
        if wanted and not (claim and claim.rdma_devices):
            yield Violation(path, "is needed above 0, as spec.kvTransfer.network.devicesBy is Claim")
        elif not wanted and claim is not None and claim.rdma_devices:
            yield Violation(path, "needs spec.kvTransfer.network with devicesBy: Claim")


def _host_network(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield pods in the network of their node, to which nobody attaches a second one."""
    for role in ROLES if dd.spec.kv_transfer.network is not None else ():
        template = dd.spec.pool(role).pod_template
        if template is not None and (template.spec or {}).get("hostNetwork") is True:
            words = "a pod in the network of its node gets no attachment: leave spec.kvTransfer.network away"
            yield Violation(f"spec.{role}.podTemplate.spec.hostNetwork", words)


def _root_in_namespace(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield user namespaces, in which root may lock no more memory than anybody else."""
    network = dd.spec.kv_transfer.network
    for role in ROLES if network is not None and network.rdma_mode == "Root" else ():
        template = dd.spec.pool(role).pod_template
        if template is not None and (template.spec or {}).get("hostUsers") is False:
            words = "kvTransfer.network.rdmaMode is Root, and root of a user namespace may not lock memory"
            yield Violation(f"spec.{role}.podTemplate.spec.hostUsers", words)


def _devices(dd: DisaggDeployment) -> Iterator[Violation]:
    network = dd.spec.kv_transfer.network
    if network is None:
        return
    accelerators = {a.resource_name for role in ROLES if (a := dd.spec.pool(role).accelerator) is not None and a.count}
    path = "spec.kvTransfer.network"
    most = max(device_count(dd, role) for role in ROLES)
    for name in rail_interfaces(network.interface, most)[1:]:
        if len(name) > MOST_NAME_CHARS:
            words = f"{most} devices need as many names, and {name} has more than {MOST_NAME_CHARS} characters"
            yield Violation(f"{path}.interface", words)
            break
    yield from _attachment(network.attachment, most, path)
    words = "is the resource of the GPUs: a worker would get as many of it as it has NICs"
    if network.rdma_resource is not None and network.rdma_resource.name in accelerators:
        yield Violation(f"{path}.rdmaResource.name", words)
    if network.attachment is not None and network.attachment.resource_name in accelerators:
        yield Violation(f"{path}.attachment.resourceName", words)
    for index, rail in enumerate(network.rails):
        if rail.resource_name in accelerators:
            yield Violation(f"{path}.rails[{index}].resourceName", words)


def _attachment(attachment: Attachment | None, devices: int, path: str) -> Iterator[Violation]:
    """Yield what the CNI plugins would refuse when the first pod starts."""
    if attachment is None:
        return
    if attachment.ipam is not None and not (attachment.ipam.get("type") and isinstance(attachment.ipam["type"], str)):
        yield Violation(f"{path}.attachment.ipam.type", "is needed: it names the plugin that gives the addresses")
    if attachment.type == "host-device" and attachment.resource_name is None and devices > 1:
        words = f"host-device takes one interface of the node, and a worker would get it {devices} times"
        yield Violation(f"{path}.attachment.master", f"{words}: use resourceName")


def _transport(dd: DisaggDeployment) -> Iterator[Violation]:
    """Yield a transport that no pods have, where no other one is tolerated."""
    if dd.spec.kv_transfer.transport == SHM and dd.spec.kv_transfer.forbids_fallback:
        words = (
            "pods share no memory with each other, so with fallback Forbid the resource would never become Ready: set "
            "kvTransfer.fallback to Warn, or choose another transport"
        )
        yield Violation("spec.kvTransfer.transport", words, NEVER_READY)


def _numbers(dd: DisaggDeployment, prefill: _Bounds, decode: _Bounds) -> Iterator[Violation]:
    scaling = dd.spec.scaling
    least = prefill.least * prefill.gpus + decode.least * decode.gpus
    if scaling.max_gpus is not None and least > scaling.max_gpus:
        words = f"{scaling.max_gpus} GPUs are allowed, but the smallest pools need {least}"
        yield Violation("spec.scaling.maxGPUs", words, INFEASIBLE)
    elif _scaled(dd) and scaling.ratio is not None and not _reachable(dd, prefill, decode):
        limit = "" if scaling.max_gpus is None else f" and at most {scaling.max_gpus} GPUs"
        words = (
            f"no number of decode workers ({decode.least} to {decode.most}) per prefill worker ({prefill.least} to "
            f"{prefill.most}){limit} is between {scaling.ratio.min:g} and {scaling.ratio.max:g}"
        )
        yield Violation("spec.scaling.ratio", words, INFEASIBLE)


def _scaled(dd: DisaggDeployment) -> bool:
    return any(dd.spec.pool(role).autoscaling is not None for role in ROLES)


def _reachable(dd: DisaggDeployment, prefill: _Bounds, decode: _Bounds) -> bool:
    """Return whether some sizes of the pools meet the ratio and the limit of GPUs."""
    return _smallest(dd, prefill, decode) is not None


def smallest_sizes(dd: DisaggDeployment) -> dict[str, int]:
    """Return the fewest workers of each role, at least a pair, that keep bounds and ratio."""
    prefill, decode = (_bounds(dd.spec.pool(role)) for role in ROLES)
    pair = max(1, prefill.least), max(1, decode.least)
    found = _smallest(dd, prefill, decode) if _scaled(dd) else None
    return dict(zip(ROLES, pair if found is None else found, strict=True))


def _smallest(dd: DisaggDeployment, prefill: _Bounds, decode: _Bounds) -> tuple[int, int] | None:
    """Return the smallest sizes that meet the ratio and the limit of GPUs, or None."""
    scaling = dd.spec.scaling
    if scaling.ratio is None:
        return max(1, prefill.least), max(1, decode.least)
    for workers in range(max(1, prefill.least), prefill.most + 1):
        low = max(1, decode.least, _ceiling(scaling.ratio.min * workers))
        high = min(decode.most, int(scaling.ratio.max * workers + 1e-9))
        fits = scaling.max_gpus is None or workers * prefill.gpus + low * decode.gpus <= scaling.max_gpus
        if low <= high and fits:
            return workers, low
    return None


def _ceiling(value: float) -> int:
    return -int(-(value - 1e-9) // 1)


def _bounds(pool: PoolSpec) -> _Bounds:
    if pool.autoscaling is not None:
        return _Bounds(pool.autoscaling.min_replicas, pool.autoscaling.max_replicas, gpus_of(pool))
    return _Bounds(pool.initial_replicas, pool.initial_replicas, gpus_of(pool))
