"""PURE: The Events that tell the user about the changes between two statuses.

They are derived from the stored status and the new one, so a restart of the operator repeats none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg_operator.engines.contract import UNPINNED_KV
from disagg_operator.status.attachment_check import ATTACHMENT_INVALID, RDMA_CHAIN_MISSING, RESOURCE_MISMATCH
from disagg_operator.status.conditions import RUNTIME_UPDATE_AVAILABLE
from disagg_operator.status.events import NORMAL, WARNING, Note
from disagg_operator.status.last_words import NO_ACCELERATOR, POD_SECURITY_LEVEL, READ_ONLY
from disagg_operator.status.scaling_verdicts import OBJECTIVES_INFEASIBLE
from disagg_operator.status.unsettled import RECONCILE_FAILURES
from disagg_operator.status.zero_state import SCALED_TO_ZERO
from disagg_wire.fabric import FABRIC_REASONS
from disagg_wire.problems import (
    CONNECTOR_MISSING,
    ENGINE_HUNG,
    ENGINE_OUT_OF_MEMORY,
    MISSING_LIBRARY,
    PORT_IN_USE,
    UNKNOWN_ENGINE_VERSION,
    UNKNOWN_FLAG,
    WEIGHTS_REFUSED,
)

# The condition reasons that lead to a Warning, and the reason of the Event.
_WARNINGS = {
    "InvalidSpec": "InvalidSpec",
    "UnsupportedParallelism": "InvalidSpec",
    "NameConflict": "NameConflict",
    **dict.fromkeys(("NotPermitted", "Infeasible", "NeverReady"), "InvalidSpec"),
    "ReferenceMissing": "ReferenceMissing",
    **dict.fromkeys(("AdmissionDenied", "QuotaExceeded"), "AdmissionDenied"),
    **dict.fromkeys(RECONCILE_FAILURES, "ReconcileFailed"),
    "FailedMount": "PodConfigFailed",
    "FailedAttachNetwork": "NetworkAttachmentFailed",
    "ImagePull": "ImagePullFailed",
    "PodConfig": "PodConfigFailed",
    "CrashLoop": "PodsCrashing",
    **dict.fromkeys(
        (PORT_IN_USE, UNKNOWN_FLAG, CONNECTOR_MISSING, MISSING_LIBRARY, ENGINE_OUT_OF_MEMORY, WEIGHTS_REFUSED),
        "EngineFailed",
    ),
    **dict.fromkeys((UNKNOWN_ENGINE_VERSION, ENGINE_HUNG, NO_ACCELERATOR, READ_ONLY), "EngineFailed"),
    POD_SECURITY_LEVEL: "PodSecurityLevel",
    "EngineMismatch": "PoolsIncompatible",
    "IncompatibleKV": "PoolsIncompatible",
    "InsufficientCapacity": "PodsUnschedulable",
    "PodsRefused": "PodsRefused",
    "MultusAbsent": "NetworkAttachmentMissing",
    "NetworkAttachmentMissing": "NetworkAttachmentMissing",
    "RdmaResourceMissing": "RdmaResourceMissing",
    "NoNodeFits": "RdmaResourceMissing",
    **dict.fromkeys((ATTACHMENT_INVALID, RESOURCE_MISMATCH, RDMA_CHAIN_MISSING), "NetworkAttachmentInvalid"),
    **dict.fromkeys(FABRIC_REASONS, "RdmaUnusable"),
    "TransportFallback": "TransportFallback",
    "HandshakeFailed": "KVHandshakeFailed",
    "PrefillRepeated": "PrefillRepeated",
    UNPINNED_KV: "Experimental",
    "MetricsUnavailable": "MetricsUnavailable",
    "CredentialsUnavailable": "CredentialsUnavailable",
    OBJECTIVES_INFEASIBLE: OBJECTIVES_INFEASIBLE,
    "ProgressDeadlineExceeded": "RolloutStalled",
    "RolledBack": "RolledBack",
    "CanaryFailed": "CanaryFailed",
    "CanaryInconclusive": "CanaryInconclusive",
    "ExchangingPools": "ExchangingPools",
}
_SUMMARIES = ("Ready", "Available", "Degraded", "Stalled", SCALED_TO_ZERO)


def of_change(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Note]:
    """Return warnings about new causes, followed by good news.

    A cause that several conditions share is reported once.
    """
    old, new = _by_type(before), _by_type(after)
    notes: dict[str, Note] = {}
    for kind, condition in new.items():
        reason = _WARNINGS.get(condition["reason"])
        same = kind in old and (old[kind]["status"], old[kind]["reason"]) == (condition["status"], condition["reason"])
        # A summary repeats a cause; only a tolerated fallback appears in no other condition.
        repeats = kind in _SUMMARIES and condition["reason"] != "TransportFallback"
        if reason is not None and not same and not repeats:
            notes.setdefault(reason, Note(WARNING, reason, f"{kind}: {condition['message']}"))
    return [*notes.values(), *_good_news(before, after, old, new)]


def _good_news(
    before: Mapping[str, Any], after: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[Note]:
    out = []
    was, now = before.get("revision") or {}, after.get("revision") or {}
    if now.get("update") and was.get("update") and was["update"] != now["update"]:
        out.append(Note(NORMAL, "RolloutStarted", f"revision {now['update']} replaces {was.get('current', '')}"))
    if was.get("current") and now.get("current") and was["current"] != now["current"]:
        out.append(Note(NORMAL, "RolloutCompleted", f"all pods are of revision {now['current']}"))
    out += _zero_news(after, old, new)
    for condition in (c for c in new.values() if c["reason"] == RUNTIME_UPDATE_AVAILABLE):
        if old.get(condition["type"], {}).get("message") != condition["message"]:
            out.append(Note(NORMAL, RUNTIME_UPDATE_AVAILABLE, condition["message"]))
    if new.get("Ready", {}).get("status") == "True" and old.get("Ready", {}).get("status") != "True":
        out.append(Note(NORMAL, "Ready", f"serving at {after.get('url', '')}"))
    return out


def _zero_news(after: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Note]:
    was, now = (conditions.get(SCALED_TO_ZERO, {}).get("status") == "True" for conditions in (old, new))
    if now and not was:
        return [Note(NORMAL, SCALED_TO_ZERO, str(new[SCALED_TO_ZERO]["message"]))]
    desired = {str(p.get("name")): int(p.get("desired") or 0) for p in after.get("pools") or []}
    if was and not now and all(desired.values()):
        return [Note(NORMAL, "Woken", ", ".join(f"{pool}: 0 -> {n}" for pool, n in desired.items()))]
    return []


def _by_type(status: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    return {str(c["type"]): c for c in status.get("conditions") or []}
