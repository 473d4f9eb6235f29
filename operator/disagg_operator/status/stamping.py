"""PURE: A condition of the Kubernetes API, and the times that it has when it is stored.

`lastTransitionTime` changes only when the status of its condition does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_operator.vocabulary import Obj

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
_MAX_MESSAGE = 2048


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as in the Kubernetes API, without its generation and transition time."""

    type: str
    status: str
    reason: str
    message: str = ""


def conditions_of(status: Mapping[str, object]) -> list[Obj]:
    """Return the conditions of a stored status."""
    found = status.get("conditions")
    return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []


def stamped(found: Sequence[Condition], previous: Mapping[str, object], generation: int, now: str) -> list[Obj]:
    """Return conditions as they are stored. Their times are kept where their status is."""
    before = {c.get("type"): c for c in conditions_of(previous)}
    out: list[Obj] = []
    for condition in found:
        old = before.get(condition.type)
        same = old is not None and old.get("status") == condition.status
        out.append(
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message[:_MAX_MESSAGE],
                "observedGeneration": generation,
                "lastTransitionTime": str(old["lastTransitionTime"]) if same and old else now,
            }
        )
    return out
