"""PURE: What is written down of a canary, in an annotation of its revision's ControllerRevision.

It is the memory of the operator: a verdict that stands there is carried out, whoever reads it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

CANARY_ANNOTATION = "disagg.dev/trial"
# On a resource: the revision whose canary a person has promoted. It may stay there: it says nothing
# of any other revision.
PROMOTE_ANNOTATION = "disagg.dev/promote-canary"

PROMOTED, INCONCLUSIVE, FAILED = "Promoted", "Inconclusive", "Failed"
_MAX_MESSAGE = 512
_FOR = " for "
_NAME_CHARS = 5


@dataclass(frozen=True, slots=True)
class CanaryRecord:
    """The state of the canary of one revision."""

    since: str = ""
    """When its first pair had served, or its rules were last changed, in RFC 3339."""
    verdict: str = ""
    """Promoted, Inconclusive or Failed; empty while it goes on."""
    rules: str = ""
    """The rules by which the two are compared, and for how long: it begins anew under others."""
    message: str = ""
    """The numbers of the verdict."""

    @property
    def compared_by(self) -> str:
        """The rules by which the two are compared."""
        return self.rules.rpartition(_FOR)[0]

    def text(self) -> str:
        """Return the value of the annotation."""
        values = {
            "since": self.since,
            "verdict": self.verdict,
            "rules": self.rules,
            "message": self.message[:_MAX_MESSAGE],
        }
        return json.dumps({key: value for key, value in values.items() if value}, sort_keys=True)


def rules_text(compared_by: str, max_duration_s: float) -> str:
    """Return the rules of a canary as they are written down."""
    return f"{compared_by}{_FOR}{max_duration_s:g}"


def trial_name(compared_by: str, since: str) -> str:
    """Return a short name of one trial of a revision, which differs from that of every other."""
    return hashlib.sha256(f"{compared_by} since {since}".encode()).hexdigest()[:_NAME_CHARS]


def read_record(text: str | None) -> CanaryRecord | None:
    """Return what an annotation says, or None if it is not readable."""
    try:
        found = json.loads(text or "")
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    return CanaryRecord(*(str(found.get(key) or "") for key in ("since", "verdict", "rules", "message")))
