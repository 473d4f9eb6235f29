"""PURE: What the conditions say of scaling: whether it works, and whether objectives can be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

OBJECTIVES_FEASIBLE = "ObjectivesFeasible"
OBJECTIVES_INFEASIBLE = "ObjectivesInfeasible"

Verdict = tuple[str, str, str]
"""The status, reason and message of a condition."""


def scaling_active(suspended: bool, blind: Sequence[str], trouble: tuple[str, str] | None) -> Verdict:
    """Return whether replicas follow the load. `blind` names the pools without usable metrics."""
    if suspended:
        return "False", "Suspended", "spec.suspend is set"
    # A missing or unreadable reference is reported at once; a Prometheus server that doesn't answer
    # is reported only once metrics are missing because of it.
    if trouble is not None and (blind or trouble[0] != "MetricsUnavailable"):
        return "False", trouble[0], f"{trouble[1]}: replicas are held"
    if blind:
        return "False", "MetricsUnavailable", f"no usable metrics of {', '.join(blind)}: replicas are held"
    return "True", "MetricsFound", "replicas follow the load"


def objectives_feasible(unmet: Mapping[str, str | None]) -> Verdict | None:
    """Return whether pools can meet their objectives, or None while that is unknown.

    `unmet` says for each pool why it cannot; it is empty if it can, and None if that is unknown.
    """
    if not unmet or None in unmet.values():
        return None
    if words := [f"{pool}: {why}" for pool, why in unmet.items() if why]:
        return "False", OBJECTIVES_INFEASIBLE, "; ".join(words)
    return "True", "WithinReach", "the pools can meet their objectives"
