"""PURE: The rules by which one of several operators leads: who may write, and until when.

The candidates share a Lease of the API server. The leader renews it; the others take it once it has
not changed for as long as it says. Each compares times of its own monotonic clock only: a candidate
counts from when it saw the Lease change, and the leader from before it sent its last renewal, so
that the leader always stops first, whatever the clocks of the machines say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_operator.kube.resources import LEASE
from disagg_operator.vocabulary import Obj


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of an election, in seconds, each shorter than the one before."""

    lease_s: float = 15.0
    """Time after which a Lease that nobody renews may be taken."""
    renew_deadline_s: float = 10.0
    """Time after its last renewal from which a leader begins no write any more."""
    retry_s: float = 2.0
    """Time between two looks at the Lease, and between two renewals."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate's knowledge of the election."""

    version: str | None = None
    """The resourceVersion of the Lease when it was last seen; None if it did not exist."""
    holder: str = ""
    """Whose the Lease was then; empty if it was nobody's."""
    valid_s: float = 0.0
    """For how long it was then valid, by its own words."""
    seen_s: float = float("-inf")
    """The time at which it was first seen like this."""
    renewed_s: float | None = None
    """The time at which our last successful renewal was begun, or None if we do not lead."""


def holder_of(lease: Obj) -> str:
    """Return whose a Lease is, or an empty text if it is nobody's."""
    return str((lease.get("spec") or {}).get("holderIdentity") or "")


def seen(standing: Standing, lease: Obj | None, me: str, now_s: float) -> Standing:
    """Return the standing after the Lease was read. Whoever is not its holder does not lead."""
    version = None if lease is None else str(lease["metadata"]["resourceVersion"])
    spec = {} if lease is None else lease.get("spec") or {}
    holder = "" if lease is None else holder_of(lease)
    kept = standing.renewed_s if holder == me else None
    if version == standing.version and lease is not None:
        return replace(standing, renewed_s=kept)
    return Standing(version, holder, float(spec.get("leaseDurationSeconds") or 0), now_s, kept)


def may_take(standing: Standing, me: str, now_s: float) -> bool:
    """Return whether to write the Lease: it is ours, or nobody's, or has not been renewed."""
    return standing.holder in ("", me) or now_s >= standing.seen_s + standing.valid_s


def won(lease: Obj, me: str, timing: Timing, begun_s: float) -> Standing:
    """Return the standing after the Lease was written by us, in a request begun at `begun_s`."""
    return Standing(str(lease["metadata"]["resourceVersion"]), me, timing.lease_s, begun_s, begun_s)


def leads(standing: Standing, timing: Timing, now_s: float) -> bool:
    """Return whether the candidate leads, and may begin to write."""
    return standing.renewed_s is not None and now_s < standing.renewed_s + timing.renew_deadline_s


def write_within_s(standing: Standing, timing: Timing, now_s: float) -> float:
    """Return the seconds in which a write that begins now must end; 0 if none may begin.

    It must end before another candidate may take the Lease.
    """
    if standing.renewed_s is None or not leads(standing, timing, now_s):
        return 0.0
    return standing.renewed_s + timing.lease_s - now_s


def next_look_s(standing: Standing, me: str, timing: Timing, now_s: float, chance: float) -> float:
    """Return the seconds until the next look at the Lease.

    A Lease of somebody else is looked at when it ends, if that is sooner. `chance` is a random
    number from 0 to 1, which keeps the candidates apart.
    """
    if standing.holder == me:
        return timing.retry_s
    pause_s = timing.retry_s * (1 + 0.2 * chance)
    ends_in_s = standing.seen_s + standing.valid_s - now_s
    return min(pause_s, ends_in_s + 0.1 * chance) if standing.holder and ends_in_s > 0 else pause_s


def taken(lease: Obj | None, namespace: str, name: str, me: str, timing: Timing, wall: str) -> Obj:
    """Return the Lease as we write it, to take or to renew it. `wall` is for human readers."""
    before = {} if lease is None else lease.get("spec") or {}
    ours = before.get("holderIdentity") == me
    changes = int(before.get("leaseTransitions") or 0)
    spec = {
        "holderIdentity": me,
        "leaseDurationSeconds": math.ceil(timing.lease_s),
        "acquireTime": before.get("acquireTime") if ours else wall,
        "renewTime": wall,
        "leaseTransitions": changes if ours or lease is None else changes + 1,
    }
    return _lease(lease, namespace, name, spec)


def released(lease: Obj, wall: str) -> Obj:
    """Return the Lease without a holder: the next who looks takes it at once."""
    spec = {**(lease.get("spec") or {}), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": wall}
    return _lease(lease, str(lease["metadata"]["namespace"]), str(lease["metadata"]["name"]), spec)


def _lease(lease: Obj | None, namespace: str, name: str, spec: Obj) -> Obj:
    metadata = {"namespace": namespace, "name": name}
    if lease is not None:  # the API server refuses a write if the Lease has changed since
        metadata = dict(lease["metadata"])
    return {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
