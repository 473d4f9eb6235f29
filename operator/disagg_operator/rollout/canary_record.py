"""PURE: What is written down of a canary, in an annotation of its revision's ControllerRevision.

It is the memory of the operator: a verdict that stands there is carried out, whoever reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

CANARY_ANNOTATION = "disagg.dev/trial"
# On a resource: the revision whose canary a person has promoted.
PROMOTE_ANNOTATION = "disagg.dev/promote-canary"

PROMOTED, INCONCLUSIVE, FAILED = "Promoted", "Inconclusive", "Failed"
_MAX_MESSAGE = 512


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """The state of the canary of one revision."""

    since: str = ""
    """When its first pair had served, in RFC 3339."""
    verdict: str = ""
    """Promoted, Inconclusive or Failed; empty while it goes on."""
    rules: str = ""
    """The rules by which it was inconclusive: it goes on under others."""
    message: str = ""
    """The numbers of the verdict."""

    def text(self) -> str:
        """Return the value of the annotation."""
        values = {
            "since": self.since,
            "verdict": self.verdict,
            "rules": self.rules,
            "message": self.message[:_MAX_MESSAGE],
        }
        return json.dumps({key: value for key, value in values.items() if value}, sort_keys=True)


def read_record(text: str | None) -> CanaryRecord | None:
    """Return what an annotation says, or None if it is not readable."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return CanaryRecord(*(str(found.get(key) or "") for key in ("since", "verdict", "rules", "message")))
