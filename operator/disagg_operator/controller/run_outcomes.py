"""PURE: What the end of a run of the reconciler means for its key and for status."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_operator.kube.errors import Conflict, Forbidden, KubeError, Retry, Terminating
from disagg_operator.status.unsettled import API_SERVER_ERROR, INTERNAL_ERROR, RECONCILE_TIMEOUT, RIGHT_MISSING


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run has ended."""

    result: str = "ok"
    """One word, for the metric."""
    words: str = ""
    """What went wrong; empty if nothing did."""
    reason: str = ""
    """The reason for status; empty if status is not to tell."""
    told: str = ""
    """The message for status."""
    after_s: float | None = None
    away: bool = False
    """Whether it failed for want of an API server."""
    expected: bool = False
    """Whether nothing is wrong: it happens where others work as well."""
    bug: bool = False

    @property
    def failed(self) -> bool:
        return bool(self.words)


def outcome_of(error: Exception, *, timeout_s: float, resync_s: float) -> RunOutcome:
    """Return what a run that raised `error` has come to. A bug must affect one resource only."""
    words = str(error) or type(error).__name__
    if isinstance(error, Conflict):
        # Another client wrote between the read and the write: repeat soon, from a fresh read.
        return RunOutcome("conflict", words, expected=True)
    if isinstance(error, Terminating):
        return RunOutcome("terminating", words, after_s=resync_s, expected=True)
    if isinstance(error, KubeError):
        reason = RIGHT_MISSING if isinstance(error, Forbidden) else API_SERVER_ERROR
        after_s = error.after_s if isinstance(error, Retry) else None
        return RunOutcome(type(error).__name__.lower(), words, reason, words, after_s, away=isinstance(error, Retry))
    if isinstance(error, TimeoutError):
        words = f"not done within {timeout_s:.0f} s"
        return RunOutcome("timeout", words, RECONCILE_TIMEOUT, words, away=True)
    told = f"{type(error).__name__}; the operator's log has the details"
    return RunOutcome("bug", "reconcile failed", INTERNAL_ERROR, told, bug=True)
