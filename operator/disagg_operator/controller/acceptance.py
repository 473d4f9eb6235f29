"""PURE: Accepts a DisaggDeployment for the control loops.

The resource is parsed, checked beyond the schema, and completed with defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from disagg_operator.api.admission import refusals
from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.api.v1alpha1 import DisaggDeployment, InvalidResource, PoolSpec, read
from disagg_operator.api.violation import Violation
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.scale_plan import ScalePlan, ZeroPlan, settings_of
from disagg_operator.autoscaling.signals.prometheus_access import access_of
from disagg_operator.controller.feasibility import UNSUPPORTED_PARALLELISM, infeasible, questionable, smallest_sizes
from disagg_operator.controller.permissions import too_deep, unpermitted
from disagg_operator.controller.replicas import Declared
from disagg_operator.desired.attachments import links_of
from disagg_operator.desired.renderer import CURRENT
from disagg_operator.performance.declared import gpus_of
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import PREFILL, ROLES

# Requests per worker if no target is declared. A prefill worker batches the requests that wait, so
# a short queue is healthy; a decode worker is well used at half of its default of 64 running
# sequences.
DEFAULT_TARGETS = {"prefill": 4.0, "decode": 32.0}
DEFAULT_DOWN_WINDOW_S = 300.0
# Ranks without GPUs share the CPU: this is useful for trying a set-up, but makes nothing faster.
_MOST_CPU_RANKS = 4


class Refused(Exception):
    """Raised when a resource cannot be carried out.

    `reason` is the reason of the condition; the message names the field. `retry_s` is set if
    something other than the resource may change that.
    """

    def __init__(self, reason: str, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_s = retry_s


@dataclass(frozen=True, slots=True)
class AcceptedDeployment:
    """A parsed and checked DisaggDeployment, with the parts that the control loops need."""

    resource: DisaggDeployment
    """The parsed resource."""
    declared: Mapping[str, Declared]
    """The declared size of each pool, by role."""
    scaling: ScalePlan
    """The settings of the autoscaler."""
    attachment: tuple[str, str] | None
    """(namespace, name) of the first NetworkAttachmentDefinition of the pods, or None."""
    interface: str | None
    """The name of the second network's interface inside the pods, or None."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """A resource with everything that is wrong with it."""

    plan: AcceptedDeployment
    violations: tuple[Violation, ...]
    """What can't be carried out, or may not be."""
    questions: tuple[Violation, ...]
    """What is carried out, but hardly meant."""


def accept(obj: Obj) -> AcceptedDeployment:
    """Parse and check a resource on its own. Raises Refused."""
    found = assess(obj)
    for violation in found.violations:
        raise Refused(violation.reason, str(violation))
    return found.plan


def assess(obj: Obj, policy: NamespacePolicy | None = None) -> Assessment:
    """Parse a resource, and collect what is wrong with it. Without a policy, nothing is forbidden.

    Raises Refused for a resource whose fields have the wrong types.
    """
    if (deep := too_deep(obj)) is not None:
        raise Refused(deep.reason, str(deep))
    try:
        resource = read(obj)
    except InvalidResource as error:
        raise Refused("InvalidSpec", str(error)) from None
    problems = [Violation(*problem.split(": ", 1)) for problem in refusals(resource)]
    for role in ROLES:
        problems += _pool_violations(role, resource.spec.pool(role))
    if resource.spec.scaling.max_gpus is not None and not all(gpus_of(resource.spec.pool(role)) for role in ROLES):
        problems.append(Violation("spec.scaling.maxGPUs", "both pools must have an accelerator"))
    try:
        further = [*infeasible(resource), *(() if policy is None else unpermitted(resource, policy))]
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
        # It takes for granted that the rules hold.
        if not problems:
            raise
        further = []
    problems += further
    return Assessment(_plan(resource), tuple(problems), tuple(questionable(resource)))


def _plan(resource: DisaggDeployment) -> AcceptedDeployment:
    spec, network = resource.spec, resource.spec.kv_transfer.network
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
            zero=_zero(resource),
        ),
        attachment=_attachment(resource),
        interface=None if network is None else network.interface,
    )


def _zero(resource: DisaggDeployment) -> ZeroPlan | None:
    declared = resource.spec.scaling.scale_to_zero
    return None if declared is None else ZeroPlan(float(declared.idle_seconds), smallest_sizes(resource))


def _down_windows_s(resource: DisaggDeployment) -> dict[str, float]:
    """Return the declared scale-down windows in seconds, by role."""
    bounds = {role: resource.spec.pool(role).autoscaling for role in ROLES}
    return {
        role: float(b.scale_down_window_s)
        for role, b in bounds.items()
        if b is not None and b.scale_down_window_s is not None
    }


def _attachment(resource: DisaggDeployment) -> tuple[str, str] | None:
    """Return the first NetworkAttachmentDefinition of the pods, an existing or a rendered one."""
    links = links_of(resource, PREFILL, CURRENT)
    return (links[0].namespace, links[0].name) if links else None


def scale_plan(obj: Obj) -> ScalePlan | None:
    """Return the settings of the autoscaler.

    Returns None for a resource that is refused: its pools are then left alone.
    """
    try:
        found = accept(obj).scaling
    except Refused:
        return None
    if (obj.get("status") or {}).get("rollout"):
        # A worker of an old revision is replaced, and not moved to the other pool.
        return replace(found, settings=replace(found.settings, role_flip_s=None))
    return found


def _pool_violations(role: str, pool: PoolSpec) -> Iterator[Violation]:
    """Yield what neither the schema nor a rule of the API checks."""
    ranks, gpus = pool.parallelism.tensor, gpus_of(pool)
    if ranks > (gpus or _MOST_CPU_RANKS):
        limit = f"accelerator.count is {gpus}" if gpus else f"without GPUs at most {_MOST_CPU_RANKS} are supported"
        path, words = f"spec.{role}.parallelism.tensor", f"{ranks} ranks, but {limit}"
        yield Violation(path, words, UNSUPPORTED_PARALLELISM)
    # The schema accepts "0" and "0.1".
    if pool.kv_cache_size is not None and quantity_bytes(pool.kv_cache_size) == 0:
        yield Violation(f"spec.{role}.kvCacheSize", "must be above 0")


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
