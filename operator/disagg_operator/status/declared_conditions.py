"""PURE: The conditions that say what a resource gives up, by its spec alone."""

from __future__ import annotations

from disagg_operator.api.v1alpha1 import Spec
from disagg_operator.status.stamping import FALSE, TRUE, Condition
from disagg_wire.roles import ROLES

_NUMERICS = "engine.numerics"
_GIVEN_UP = (
    "rounding may depend on the rest of the batch and on what was decoded or prefilled, so that a seeded answer may "
    "change where two tokens are nearly tied: after a failover, with a prefix hit, or in another batch"
)


def declared_conditions(spec: Spec) -> tuple[Condition, ...]:
    """Return the conditions of an experiment that the spec opts in to, and of fast numerics."""
    engine, out = spec.engine, []
    if engine.experimental and (tried := engine.known.experiment) is not None:
        out.append(Condition("Experimental", TRUE, tried.reason, tried.message))
    if _NUMERICS in engine.known.limits.absent:
        return tuple(out)
    if engine.numerics == "Fast":
        out.append(Condition("ExactNumerics", FALSE, "FastNumerics", f"engine.numerics is Fast: {_GIVEN_UP}"))
    elif any(_accelerated(spec, role) for role in ROLES):
        out.append(Condition("ExactNumerics", FALSE, "ComputesOnGPUs", f"the workers compute on GPUs: {_GIVEN_UP}"))
    return tuple(out)


def _accelerated(spec: Spec, role: str) -> bool:
    """Return whether the workers of a pool have accelerators."""
    accelerator = spec.pool(role).accelerator
    return accelerator is not None and accelerator.count > 0
